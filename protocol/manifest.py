"""The base's manifest: what a base is made of, by sha256, and what can be adapted in it.

The fingerprint is the identity of the *numbers* everyone trains on and serves (codes, scales,
unquantised tensors, architecture, tokenizer); it does not cover the edge graph, which may be
exported again by a newer exporter. The manifest covers every file. (P-1.3)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from protocol.documents import OddError, json_as
from protocol.encoding import canonical_json, digest
from protocol.errors import ArtefactError
from protocol.forms import SCALE, SHIFT
from protocol.media import DRAWN, MEDIA, Medium
from protocol.section import PositiveReal

FORMAT: Literal[3] = (
    3  # 1: no scales and shifts in the graph (docs/adr/0044), 2: no token types (0047)
)
GRAPH_DATA = "graph.data"  # tensors of a graph that is too large for one file (P-1.8)

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
MANIFEST_NAME = "manifest.json"
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(gt=0, lt=2**40)]
Size = Annotated[int, Field(ge=0, lt=2**53)]
# What canonical JSON takes as a key (P-1.1), and no more than a module path needs.
TensorName = Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,300}$")]
Word = Annotated[str, Field(max_length=300)]
MOST_LINEARS, MOST_TENSORS, MOST_FILES, MOST_LAYERS = 8192, 65_536, 1000, 1024
DIMENSIONS = 8


class Record(BaseModel):
    """A table of the manifest: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class FileEntry(Record):
    """A file of the folder."""

    sha256: Sha256
    bytes: Size


class TensorEntry(Record):
    """One tensor of weights.safetensors; the fingerprint is made of these."""

    dtype: Annotated[str, Field(max_length=20)]
    shape: Annotated[list[Size], Field(max_length=DIMENSIONS)]
    sha256: Sha256


class Linear(Record):
    """A linear layer that can carry LoRA factors. ``path`` is its Hugging Face module path."""

    path: TensorName
    in_features: Count
    out_features: Count

    @property
    def narrows(self) -> bool:
        """Whether it is the second of a feed-forward pair: its scale is one of inputs. (P-1.11)"""
        return self.out_features < self.in_features


class Head(Record):
    """The classification head: its module path and its own (default) number of labels."""

    path: TensorName
    in_features: Count
    labels: Count


# What a base is built for that reads words and where they stand on a page, and the input of these. (P-1.17)
DOCUMENTS: Literal["document-classification"] = "document-classification"
BOXES = "bbox"

# The input that says which of a pair's texts a token is of; without it all are of the first.
TYPE_IDS = "token_type_ids"
# Not those of the ids: the default is one by one, and spreads.
TYPES_SHAPE: list[int | str] = ["types.rows", "types.tokens"]


class Slot(Record):
    """An optional input of the edge graph; a string dimension is free."""

    name: TensorName
    dtype: Literal["float32"]
    shape: Annotated[list[Size | Word], Field(max_length=DIMENSIONS)]


class Graph(Record):
    """The exported edge graph; of its ``inputs`` :data:`TYPE_IDS` may be left out."""

    file: Word
    opset: Count
    accuracy_level: Annotated[int, Field(ge=0, le=4)]
    inputs: Annotated[list[Word], Field(max_length=16)]
    output: Word
    slots: Annotated[list[Slot], Field(max_length=8 * MOST_LINEARS)]

    @cached_property
    def slot_names(self) -> frozenset[str]:
        """Names of its optional inputs."""
        return frozenset(slot.name for slot in self.slots)


Bits = Literal[4, 8, 16, 32]


class BaseManifest(Record):
    """What ``manifest.json`` says of every base, whatever it reads and answers with.

    ``max_positions``: tokens that a text may have, or positions of a file of another medium.
    """

    fingerprint: Sha256
    source: Annotated[str, Field(max_length=1000)]
    task: str
    family: Word
    bits: Bits
    block: Count
    hidden_size: Count
    layers: Annotated[int, Field(gt=0, le=MOST_LAYERS)]
    max_positions: Count
    parameters: Count
    linears: list[Linear] = Field(min_length=1, max_length=MOST_LINEARS)
    graph: Graph
    tensors: Annotated[dict[TensorName, TensorEntry], Field(max_length=MOST_TENSORS)]
    files: Annotated[dict[str, FileEntry], Field(max_length=MOST_FILES)]
    made_with: Annotated[dict[Word, Word], Field(max_length=100)]

    def graphs(self) -> list[Graph]:
        """Its graphs, in the order in which an answer runs them."""
        return [self.graph]

    def input_slots(self, graph: Graph) -> list[Slot]:
        """The optional inputs of float32 that one of its graphs has."""
        return graph.slots

    def slots(self) -> list[Slot]:
        """The optional inputs of all graphs; each is in one of them."""
        return [slot for graph in self.graphs() for slot in graph.slots]

    def graph_files(self) -> list[str]:
        """The graphs' files, and the one beside them if there is one. (P-1.8)"""
        return [*(graph.file for graph in self.graphs()), *({GRAPH_DATA} & set(self.files))]

    def to_json(self) -> str:
        """The file's text: sorted, indented, newline at the end."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"


class TextManifest(BaseManifest):
    """What manifests have of a base that reads texts; ``embedding_size``: width of word embeddings."""

    vocab_size: Count
    embedding_size: Count
    embedding_std: PositiveReal


class HeadManifest(BaseManifest):
    """What manifests have of a base with a head, which answers with labels or numbers."""

    pooling: Literal["mean", "cls", "pooler", "projected"]
    head: Head


class Manifest(HeadManifest, TextManifest):
    """``manifest.json`` of an encoder's folder: of texts, or of documents, which are words with boxes."""

    format: Literal[3] = FORMAT
    task: Literal["sequence-classification", "document-classification"]
    pooling: Literal["mean", "cls", "pooler"]

    @property
    def boxed(self) -> bool:
        """Whether its graph reads where words stand. (P-1.17)"""
        return self.task == DOCUMENTS

    def fingerprinted(self) -> Self:
        """The same under the identity of the numbers and what they compute. Raises KeyError."""
        return self.model_copy(update={"fingerprint": fingerprint_of(self)})


def fingerprint(
    *,
    tensors: dict[str, TensorEntry],
    architecture: dict[str, Any],
    tokenizer_sha256: str,
) -> str:
    """The base's identity from the digests of its tensors, its architecture and its tokenizer.

    ``architecture`` holds what changes the function the tensors compute: family, pooling, bits,
    block, the sha256 of config.json and, of documents alone, that boxes are read.
    """
    body = {
        "tensors": {name: entry.model_dump() for name, entry in tensors.items()},
        "architecture": architecture,
        "tokenizer": tokenizer_sha256,
    }
    return digest("base", canonical_json(body))


def fingerprint_of(manifest: Manifest) -> str:
    """The fingerprint that what the manifest lists gives. Raises KeyError without its files."""
    return fingerprint(
        tensors=manifest.tensors,
        architecture={
            "family": manifest.family,
            "pooling": manifest.pooling,
            "bits": manifest.bits,
            "block": manifest.block,
            "config": manifest.files[CONFIG].sha256,
            **({"boxes": True} if manifest.boxed else {}),
        },
        tokenizer_sha256=manifest.files[TOKENIZER].sha256,
    )


def _odd_slot(graph: Graph) -> str:
    """What is wrong with the slots: a name that stands twice, a scale or shift that is no vector."""
    if len(graph.slot_names) < len(graph.slots):
        return "list names one of them twice"
    for slot in graph.slots:
        vector = len(slot.shape) == 1 and isinstance(slot.shape[0], int)
        if slot.name.endswith((SCALE, SHIFT)) and not vector:
            return f"{slot.name} is no vector of a fixed size"
    return ""


def verify_named(files: Mapping[str, FileEntry], graph: Graph, *, source: str) -> None:
    """Files by plain names, the graph among them, and sound slots. Raises ArtefactError."""
    for name in files:
        if not SAFE_NAME.fullmatch(name):
            raise ArtefactError(
                f"{source}: {name!r} is not a plain file name", "do not use this base"
            )
    if graph.file not in files:
        raise ArtefactError(f"{source}: it does not list its graph", "do not use this base")
    if odd_slot := _odd_slot(graph):
        raise ArtefactError(f"{source}: the slot {odd_slot}", "do not use this base")


def media_of(manifest: BaseManifest) -> str:
    """What a base reads, for people."""
    medium = MEDIA.get(manifest.task)
    if medium is not None:
        return medium.plural
    return "documents" if manifest.task == DOCUMENTS else "texts"


def does(manifest: BaseManifest) -> str:
    """What a base does, for people."""
    if isinstance(manifest, HeadManifest):
        return f"sort {media_of(manifest)}"
    return "draw images" if manifest.task == DRAWN.task else "write text"


def _verb(medium: Medium) -> str:
    return "draws" if medium == DRAWN else "sorts"


def task_of(text: str) -> str:
    """The task that a ``manifest.json`` names, whatever else is in it; "" where it names none."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    task = document.get("task") if isinstance(document, dict) else None
    return task if isinstance(task, str) else ""


def _verify_boxes(manifest: Manifest, *, source: str) -> None:
    """The graph reads boxes where its base was built for documents. Raises ArtefactError."""
    if manifest.boxed != (BOXES in manifest.graph.inputs):
        raise ArtefactError(
            f"{source}: its graph {'does not read' if manifest.boxed else 'reads'} `{BOXES}`, and it was "
            f"built for {manifest.task}",
            "do not use this base",
        )


def parse_manifest(text: str, *, source: str) -> Manifest:
    """Read ``manifest.json``. Raises ArtefactError; file names that leave the folder are refused.

    The fingerprint must be that of the tensors, architecture and tokenizer listed; whether the files
    hold these tensors is for whoever opens them.
    """
    other_format = ArtefactError(
        f"{source}: a base of another format than this fedge's, which is {FORMAT}",
        "make it anew: fedge base build SOURCE --out FOLDER",
    )
    try:
        manifest = json_as(Manifest, text)
    except OddError as odd:
        if task_of(text) in ("causal-lm", "seq2seq-lm"):
            raise ArtefactError(
                f"{source}: this base writes texts, and one that sorts them is needed",
                "name a base that was built with --task sequence-classification",
            ) from None
        if medium := MEDIA.get(task_of(text)):
            raise ArtefactError(
                f"{source}: this base {_verb(medium)} {medium.plural}, and one that sorts texts is needed",
                "name a base that was built with --task sequence-classification",
            ) from None
        if str(odd).startswith("format:"):
            raise other_format from None
        raise ArtefactError(
            f"{source}: {odd}", "build the base again or fetch an intact copy"
        ) from None
    if "format" not in manifest.model_fields_set:
        raise other_format
    verify_named(manifest.files, manifest.graph, source=source)
    _verify_boxes(manifest, source=source)
    if not {CONFIG, TOKENIZER} <= set(manifest.files) or (
        fingerprint_of(manifest) != manifest.fingerprint
    ):
        raise ArtefactError(
            f"{source}: the fingerprint is not that of what the manifest lists",
            "do not use this base",
        )
    return manifest
