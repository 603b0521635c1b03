"""What training a decoder takes of memory, from its sizes; and the fastest way that stays below a limit.

Measured with SmolLM2-135M in ONNX Runtime 1.31 (``benchmarks/language.py``); of other shapes within a fifth
(``tests/unit/base_model/programs/test_footprint.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from protocol.decoder_manifest import DecoderManifest
from protocol.errors import PlanError
from protocol.recipe import Recipe

MIB, FLOAT = 2**20, 4
PROCESS = 100 * MIB  # Python and the libraries of a client
SLICE = 2**20  # elements of the output layer that are expanded at a time
# Of a layer: its nodes in a session and as they were read, and what an arena leaves unused.
NODES = 5 * MIB // 2
# Codes and scales are read by products, as rows when they are expanded, and packed once more.
READINGS = 3
COPIES = 3  # of an adapter in a step: turned for its products, gradients
STATES = 9  # of an adapter in training: start, values, gradients, their sum, moments, flat vectors
ENCODED = 7  # of what is trained in an adapter's place: values, gradients twice, moments, a step
AT_WORK = 2  # layers' worth of tensors that are there beside what is kept


class Keep(StrEnum):
    """What a step keeps for its backward half; from the fastest to the smallest."""

    ALL = "all"
    PRODUCTS = "products"  # of matrices with the hidden states; what is cheap is computed again
    STREAMS = "streams"  # of hidden states alone: one more forward half, and memory of one block


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a step is computed: what it keeps, and the padded tokens that are computed at a time."""

    keep: Keep
    tokens: int


# From the fastest to the smallest: expanding weights for few tokens costs as much as for many.
WAYS = (
    Way(keep=Keep.ALL, tokens=512),
    Way(keep=Keep.PRODUCTS, tokens=512),
    Way(keep=Keep.PRODUCTS, tokens=256),
    Way(keep=Keep.STREAMS, tokens=512),
    Way(keep=Keep.STREAMS, tokens=256),
    Way(keep=Keep.STREAMS, tokens=128),
)


def layer_floats(manifest: DecoderManifest, keep: Keep, *, longest: int) -> int:
    """Floats that a step keeps of a token in a layer; texts have ``longest`` tokens."""
    hidden, queries = manifest.hidden_size, manifest.heads * manifest.head_size
    inner = max(max(x.in_features, x.out_features) for x in manifest.linears)
    projected = queries + 2 * manifest.kv_heads * manifest.head_size
    match keep:
        case Keep.STREAMS:
            return 2 * hidden
        case Keep.PRODUCTS:
            return 2 * hidden + projected + queries + 2 * inner
        case Keep.ALL:
            return 4 * hidden + projected + 2 * queries + 4 * inner + manifest.heads * longest


def step_bytes(manifest: DecoderManifest, way: Way, *, longest: int, adapter: int) -> int:
    """The most that a client's process has while it trains.

    ``longest``: tokens of the longest text: one of them at least is computed at a time. ``adapter``: numbers.
    """
    tokens, whole = max(way.tokens, longest), layer_floats(manifest, Keep.ALL, longest=longest)
    kept = manifest.layers * layer_floats(manifest, way.keep, longest=longest)
    return (
        PROCESS
        + manifest.layers * NODES
        + _weight_bytes(manifest)
        + FLOAT * adapter * (COPIES + STATES)
        + FLOAT * 2 * SLICE
        + FLOAT * tokens * (kept + AT_WORK * whole)
    )


def _weight_bytes(manifest: DecoderManifest) -> int:
    numbers = sum(x.in_features * x.out_features for x in manifest.linears)
    per_block = FLOAT if manifest.bits < 16 else 0
    scales = numbers // manifest.block * per_block
    head = manifest.vocab_size * manifest.hidden_size
    output = head * manifest.embedding_bits // 8
    output += head // manifest.block * per_block if manifest.embedding_bits < 16 else 0
    offsets = scales if manifest.affine else 0
    return READINGS * (numbers * manifest.bits // 8 + scales) + offsets + output


def way_of(recipe: Recipe) -> Way | None:
    """The fastest way that ``local.memory`` allows; None on a base that reads rows at once.

    Raises PlanError where there is none.
    """
    manifest, local = recipe.manifest, recipe.plan.local
    if not isinstance(manifest, DecoderManifest):
        return None
    for way in WAYS:
        size = training_bytes(recipe, manifest, way)
        if not local.memory or size <= local.memory * MIB:
            return way
    raise PlanError(
        f"local.memory = {local.memory} MiB: training on this base takes {-(-size // MIB)} MiB at least, "
        f"for texts of up to {recipe.plan.task.longest} tokens",
        "raise local.memory, or lower task.max_length or the adapter's rank",
    )


def training_bytes(recipe: Recipe, manifest: DecoderManifest, way: Way) -> int:
    """:func:`step_bytes` of a plan on its base."""
    longest = min(recipe.plan.task.longest, manifest.max_positions)
    size = step_bytes(manifest, way, longest=longest, adapter=recipe.layout.size)
    return size + FLOAT * ENCODED * recipe.encoder_size
