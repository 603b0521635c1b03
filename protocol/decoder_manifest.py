"""The manifest of a base that writes text: a decoder, by sha256, and what can be adapted in it. (P-1.13)

Its graph takes new tokens and what a cache holds of earlier ones, and gives logits and the cache's new
state: the contract of onnxruntime-genai. Inputs: ``input_ids`` (rows, new) int64, ``attention_mask`` (rows,
past + new) int64, ``past_key_values.L.key`` and ``.value`` (rows, kv_heads, past, head_size) float32 of every
layer L; outputs: ``logits`` (rows, 1, vocabulary) float32 behind each row's last token (rows, new, vocabulary
in bases of before), ``present.L.key`` and ``.value``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from protocol.documents import OddError, json_as
from protocol.encoding import canonical_json, digest
from protocol.errors import ArtefactError
from protocol.forms import PREFIX
from protocol.joined import joined_slots, joined_tensors, rank_inputs, ranks_slot, verify_joined
from protocol.manifest import (
    CONFIG,
    MOST_LINEARS,
    TOKENIZER,
    Bits,
    Count,
    Graph,
    Slot,
    TensorEntry,
    TensorName,
    TextManifest,
    task_of,
    verify_named,
)

DECODER: Literal["causal-lm"] = "causal-lm"
CHAT_TEMPLATE = "chat_template.jinja"  # beside the tokenizer; a base that knows no chat has none
IDS, MASK, LOGITS = "input_ids", "attention_mask", "logits"
FORMAT: Literal[1] = 1
Token = Annotated[int, Field(ge=0, lt=2**31)]


class WritingManifest(TextManifest):
    """What manifests have of a base that writes a text token by token.

    ``bits``: of linears; ``embedding_bits``: of the word embeddings and the output layer, which are one
    where they are ``tied``. ``affine``: codes have an offset per block beside the scale. ``max_positions``:
    those that the graph's tables hold. ``ends``: tokens that end a text.
    """

    format: Literal[1] = FORMAT
    embedding_bits: Bits
    affine: bool
    tied: bool
    heads: Count
    kv_heads: Count
    head_size: Count
    ends: Annotated[list[Token], Field(max_length=64)]

    def cache_names(self) -> list[tuple[str, str]]:
        """(input, output) of every tensor of the cache, layer by layer, keys before values."""
        return [
            (f"past_key_values.{layer}.{part}", f"present.{layer}.{part}")
            for layer in range(self.layers)
            for part in ("key", "value")
        ]

    def slots_beside(self) -> list[Slot]:
        """What an adapter may hold that is no input of a graph."""
        return []

    def inputs_of(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """An adapter's tensors, float32 in the shapes of slots, by the inputs of the graphs."""
        return dict(tensors)


class DecoderManifest(WritingManifest):
    """``manifest.json`` of a decoder's folder.

    ``begin``: the token that begins texts. ``joined``: paths of linears that are one product in the graph,
    by the path of that. (``protocol.joined``) ``graph.inputs`` may list inputs that say which ranks are a
    row's own.
    """

    task: Literal["causal-lm"] = DECODER
    begin: Token | None
    joined: dict[TensorName, Annotated[list[TensorName], Field(max_length=8)]] = Field(
        default={}, max_length=MOST_LINEARS
    )

    @property
    def is_ranked(self) -> bool:
        """Whether a run may have rows under adapters of several low ranks."""
        wanted = rank_inputs(self.linears, self.joined)
        return set(wanted) <= set(self.graph.inputs)

    def input_slots(self, graph: Graph) -> list[Slot]:
        """The optional inputs of float32 that the graph has."""
        counts = range(1, 9)
        ranks = [slot for slot in map(ranks_slot, counts) if slot.name in graph.inputs]
        return [*joined_slots(graph.slots, self.linears, self.joined), *ranks]

    def inputs_of(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """An adapter's tensors, float32 in the shapes of slots, by the inputs of the graph."""
        return joined_tensors(tensors, self.linears, self.joined)

    def prefix_slot(self) -> Slot:
        """What an adapter's prefix has to be; it is no input of the graph."""
        width = self.layers * 2 * self.kv_heads * self.head_size
        return Slot(name=PREFIX, dtype="float32", shape=[PREFIX, width])

    def slots_beside(self) -> list[Slot]:
        """The prefix's."""
        return [self.prefix_slot()]


def decoder_fingerprint(
    *,
    tensors: dict[str, TensorEntry],
    architecture: dict[str, Any],
    tokenizer_sha256: str,
    tag: str = "decoder",
) -> str:
    """The identity of the numbers, what they compute, and of the tokenizer.

    ``architecture``: family, bits, embedding_bits, block, affine, tied, and the sha256 of config.json.
    ``tag``: of the digest, one for each kind of base.
    """
    body = {
        "tensors": {name: entry.model_dump() for name, entry in tensors.items()},
        "architecture": architecture,
        "tokenizer": tokenizer_sha256,
    }
    return digest(tag, canonical_json(body))


def decoder_fingerprint_of(manifest: WritingManifest, *, tag: str = "decoder") -> str:
    """The fingerprint that what the manifest lists gives. Raises KeyError without its files."""
    names = ("family", "bits", "embedding_bits", "block", "affine", "tied")
    return decoder_fingerprint(
        tag=tag,
        tensors=manifest.tensors,
        architecture={name: getattr(manifest, name) for name in names}
        | {"config": manifest.files[CONFIG].sha256},
        tokenizer_sha256=manifest.files[TOKENIZER].sha256,
    )


def parse_decoder_manifest(text: str, *, source: str) -> DecoderManifest:
    """Read a decoder's ``manifest.json``. Raises ArtefactError."""
    try:
        manifest = json_as(DecoderManifest, text)
    except OddError as odd:
        raise ArtefactError(
            f"{source}: {odd}", "build the base again or fetch an intact copy"
        ) from None
    verify_writing(manifest, tag="decoder", source=source)
    try:
        verify_joined(manifest.linears, manifest.joined)
    except ValueError as odd:
        raise ArtefactError(f"{source}: joined: {odd}", "do not use this base") from None
    if (manifest.begin or 0) >= manifest.vocab_size:
        raise _odd_token(source)
    return manifest


def verify_writing(manifest: WritingManifest, *, tag: str, source: str) -> None:
    """What every base that writes has to keep to. Raises ArtefactError."""
    for graph in manifest.graphs():
        verify_named(manifest.files, graph, source=source)
    if manifest.heads % manifest.kv_heads or manifest.head_size % 2:
        raise ArtefactError(f"{source}: its heads do not fit", "do not use this base")
    if any(token >= manifest.vocab_size for token in manifest.ends):
        raise _odd_token(source)
    if not {CONFIG, TOKENIZER} <= set(manifest.files) or (
        decoder_fingerprint_of(manifest, tag=tag) != manifest.fingerprint
    ):
        raise ArtefactError(
            f"{source}: the fingerprint is not that of what the manifest lists",
            "do not use this base",
        )


def _odd_token(source: str) -> ArtefactError:
    return ArtefactError(f"{source}: a token is not in the vocabulary", "do not use this base")


def is_decoder(text: str) -> bool:
    """Whether a ``manifest.json`` says that it is a decoder's, whatever else is in it."""
    return task_of(text) == DECODER
