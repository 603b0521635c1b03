"""The manifest of a base that turns a text into another: two graphs, and what can be adapted. (P-1.14)

The encoder's graph is run once for a text: ``input_ids`` and ``attention_mask`` (rows, source) int64; outputs
``states`` (rows, source, hidden) float32 and, of every layer L of the decoder, ``cross.L.key`` and ``.value``
(rows, heads, source, head_size). The decoder's keeps the contract of ``protocol.decoder_manifest``, with the
latter and ``source_mask`` (rows, source) int64 as further inputs; what is written begins with ``start``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from protocol.decoder_manifest import Token, WritingManifest, verify_writing
from protocol.documents import OddError, json_as
from protocol.errors import ArtefactError
from protocol.manifest import MOST_LAYERS, Graph, task_of

SEQ2SEQ: Literal["seq2seq-lm"] = "seq2seq-lm"
TAG = "seq2seq"  # of the fingerprint
SOURCE_MASK, STATES = "source_mask", "states"


class Seq2SeqManifest(WritingManifest):
    """``manifest.json`` of the folder of an encoder with a decoder.

    ``graph`` and ``layers`` are the decoder's. ``max_positions``: of either text. ``padding``: the token that
    stands, in training, where a target counts for nothing.
    """

    task: Literal["seq2seq-lm"] = SEQ2SEQ
    encoder: Graph
    encoder_layers: Annotated[int, Field(gt=0, le=MOST_LAYERS)]
    start: Token
    padding: Token

    def graphs(self) -> list[Graph]:
        """The encoder's, then the decoder's."""
        return [self.encoder, self.graph]

    def cross_names(self) -> list[str]:
        """What the encoder gives and the decoder takes, layer by layer, keys before values."""
        return [name for layer in range(self.layers) for name in cross_names(layer)]


def cross_names(layer: int) -> tuple[str, str]:
    """Names of the keys and of the values that a layer of the decoder takes of what was read."""
    return f"cross.{layer}.key", f"cross.{layer}.value"


def parse_seq2seq_manifest(text: str, *, source: str) -> Seq2SeqManifest:
    """Read such a ``manifest.json``. Raises ArtefactError."""
    try:
        manifest = json_as(Seq2SeqManifest, text)
    except OddError as odd:
        raise ArtefactError(
            f"{source}: {odd}", "build the base again or fetch an intact copy"
        ) from None
    verify_writing(manifest, tag=TAG, source=source)
    if max(manifest.start, manifest.padding) >= manifest.vocab_size:
        raise ArtefactError(f"{source}: a token is not in the vocabulary", "do not use this base")
    twice = {slot.name for slot in manifest.encoder.slots} & manifest.graph.slot_names
    if twice or manifest.encoder.file == manifest.graph.file:
        what = f"the slot {min(twice)} is in both graphs" if twice else "both graphs are one file"
        raise ArtefactError(f"{source}: {what}", "do not use this base")
    return manifest


def is_seq2seq(text: str) -> bool:
    """Whether a ``manifest.json`` says that it is such a base's, whatever else is in it."""
    return task_of(text) == SEQ2SEQ
