"""What a plan will cost, before anything is spent: parameters, bytes, memory, time.

Parameters and bytes are exact. Memory and time are estimates; their formulas are below.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from base_model.programs.footprint import training_bytes, way_of
from protocol.decoder_manifest import DecoderManifest
from protocol.exchange.plain import HEADER
from protocol.layout import HEAD_PART
from protocol.manifests import AnyManifest
from protocol.media_manifest import MediaManifest
from protocol.plan import Plan
from protocol.privacy.planned import noise_to_signal, planned_epsilon
from protocol.recipe import Recipe
from protocol.secagg.agreement import Keys
from protocol.secagg.graph import CHOICE_BYTES, degree, is_complete
from protocol.secagg.messages import COHORT_HEAD, COUNT, REVEAL_BYTES, advert_bytes
from protocol.secagg.packing import packed_size
from protocol.secagg.primitives import ID_BYTES
from protocol.secagg.task import encoding_for
from protocol.wire import Instruction

FLOAT = 4  # bytes
SIGNATURE, ROOT, LENGTH, OPENING = 64, 32, 4, 24
NO_INSTRUCTION = Instruction(
    round=1, attempt=1, plan_digest="", base="", adapter_digest="", evaluate=False
)
ACTIVATIONS_PER_LAYER = 34  # values kept per token, layer and hidden unit for a backward pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """Bytes are per client unless named otherwise; the ``estimate`` fields are estimates."""

    adapter_parameters: int
    trained_parameters_by_phase: dict[str, int]
    download_bytes_per_client_round: int
    upload_bytes_per_client_round: dict[str, int]
    run_bytes_total: int
    client_memory_bytes_estimate: int
    coordinator_memory_bytes_estimate: int
    base_bytes_once: int
    local_seconds_per_round_estimate: float
    run_hours_estimate: float
    assumed_rows_per_client: int
    assumed_tokens_per_row: int
    assumed_tokens_per_second: int
    epsilon: float | None
    noise_to_signal: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def upload_bytes(plan: Plan, size: int) -> int:
    """Bytes that a client sends in a round with ``size`` coordinates, when nobody is lost."""
    if plan.secrecy.exchange == "plain":
        return HEADER.size + FLOAT * size
    encoding = encoding_for(plan, NO_INSTRUCTION, size=size, clients=plan.largest_sum)
    near = degree(plan.largest_sum)
    choice = 0 if is_complete(plan.largest_sum) else CHOICE_BYTES
    vector = packed_size(encoding.count, encoding.bits) + ROOT + LENGTH + SIGNATURE
    advert = advert_bytes(Keys(plan.secrecy.keys))
    boxes = choice + _box_bytes(plan)
    return advert + boxes + SIGNATURE + vector + SIGNATURE + near * REVEAL_BYTES


def download_bytes(plan: Plan, size: int) -> int:
    """Bytes that a client gets in a round in which ``size`` coordinates of the adapter are sent."""
    if plan.secrecy.exchange == "plain":
        return FLOAT * size
    clients = plan.largest_sum
    advert = advert_bytes(Keys(plan.secrecy.keys))
    cohort = COHORT_HEAD.size + clients * advert
    senders = 0 if is_complete(clients) else COUNT.size + degree(clients) * advert
    members = COUNT.size + clients * ID_BYTES + senders + _box_bytes(plan)
    agreed = clients * ID_BYTES + clients * (ID_BYTES + SIGNATURE)
    return OPENING + cohort + members + agreed + FLOAT * size


def _box_bytes(plan: Plan) -> int:
    """Sealed shares for, or of, one client's holders; in a small cohort half of them hold a pair's seed."""
    keys, near = Keys(plan.secrecy.keys), degree(plan.largest_sum)
    full = keys.box_bytes(seed=True)
    if not is_complete(plan.largest_sum):
        return near * full
    return near * (full + keys.box_bytes(seed=False)) // 2


def _client_bytes(recipe: Recipe, tokens_per_row: int) -> int:
    """Of a base that writes text, of the process and for the longest texts: see ``footprint``.

    Of another base its tensors, one expanded weight, the adapter four times (values, gradients, two moments),
    so too what is trained in its place, and the activations of one batch. Raises PlanError when
    ``local.memory`` cannot be met.
    """
    plan, manifest = recipe.plan, recipe.manifest
    if isinstance(manifest, DecoderManifest) and (way := way_of(recipe)):
        return training_bytes(recipe, manifest, way)
    tokens = plan.local.batch_size * tokens_per_row
    widest = max(x.in_features * x.out_features for x in manifest.linears)
    weights = manifest.files.get("weights.safetensors")
    tensors = weights.bytes if weights else sum(entry.bytes for entry in manifest.files.values())
    activations = tokens * manifest.hidden_size * manifest.layers * ACTIVATIONS_PER_LAYER * FLOAT
    trained = recipe.layout.size + recipe.encoder_size
    return tensors + FLOAT * widest + 4 * FLOAT * trained + activations


def forecast(
    plan: Plan,
    manifest: AnyManifest,
    *,
    rows_per_client: int = 200,
    tokens_per_row: int = 16,
    tokens_per_second: int = 2000,
) -> Forecast:
    """Forecast ``plan`` on a base.

    Client memory: :func:`_client_bytes`; the coordinator holds the adapter
    four times and two sums of 8 bytes per coordinate. A round takes as long as one client takes
    for its rows: clients work side by side. Simulations run them one after the other. Where rows are files
    a base makes as many positions of each, whatever ``tokens_per_row`` is.
    """
    if isinstance(manifest, MediaManifest):
        tokens_per_row = manifest.max_positions
    recipe = Recipe(plan=plan, manifest=manifest)
    layout = recipe.layout
    phases = {
        "+".join(sorted(parts - {HEAD_PART}) or [HEAD_PART]): layout.only(parts).size
        for parts in recipe.phases
    }
    uploads = {name: upload_bytes(plan, size) for name, size in phases.items()}
    mean_upload = sum(uploads.values()) / len(uploads)
    rows = rows_per_client * plan.local.epochs
    if plan.local.max_steps:
        rows = min(rows, plan.local.max_steps * plan.local.batch_size)
    seconds = rows * tokens_per_row / tokens_per_second
    base_bytes = sum(entry.bytes for entry in manifest.files.values())
    down = download_bytes(plan, recipe.sent_in(plan.rounds))
    return Forecast(
        adapter_parameters=layout.size,
        trained_parameters_by_phase=phases,
        download_bytes_per_client_round=down,
        upload_bytes_per_client_round=uploads,
        run_bytes_total=round(plan.rounds * plan.cohort.asked * (down + mean_upload)),
        client_memory_bytes_estimate=_client_bytes(recipe, tokens_per_row),
        coordinator_memory_bytes_estimate=4 * FLOAT * layout.size + 16 * layout.size,
        base_bytes_once=base_bytes,
        local_seconds_per_round_estimate=seconds,
        run_hours_estimate=plan.rounds * seconds / 3600,
        assumed_rows_per_client=rows_per_client,
        assumed_tokens_per_row=tokens_per_row,
        assumed_tokens_per_second=tokens_per_second,
        epsilon=planned_epsilon(plan, list(phases.values())) if plan.private else None,
        noise_to_signal=noise_to_signal(plan, list(phases.values())) if plan.private else None,
    )
