"""The base's manifest: what a base is made of, by sha256, and what can be adapted in it.

The fingerprint is the identity of the *numbers* everyone trains on and serves (codes, scales,
unquantised tensors, architecture, tokenizer); it does not cover the edge graph, which may be
exported again by a newer exporter. The manifest covers every file. (P-1.3)
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.encoding import canonical_json, digest
from protocol.errors import ArtefactError

GRAPH_DATA = "graph.data"  # tensors of a graph that is too large for one file (P-1.7)

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
MANIFEST_NAME = "manifest.json"
SAFE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(gt=0)]


class Record(BaseModel):
    """A table of the manifest: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class FileEntry(Record):
    """A file of the folder."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class TensorEntry(Record):
    """One tensor of weights.safetensors; the fingerprint is made of these."""

    dtype: str
    shape: list[int]
    sha256: Sha256


class Linear(Record):
    """A linear layer that can carry LoRA factors. ``path`` is its Hugging Face module path."""

    path: str
    in_features: Count
    out_features: Count


class Head(Record):
    """The classification head: its module path and its own (default) number of labels."""

    path: str
    in_features: Count
    labels: Count


class Slot(Record):
    """An optional input of the edge graph; a string dimension is free."""

    name: str
    dtype: Literal["float32"]
    shape: list[int | str]


class Graph(Record):
    """The exported edge graph."""

    file: str
    opset: Count
    accuracy_level: Annotated[int, Field(ge=0, le=4)]
    inputs: list[str]
    output: str
    slots: list[Slot]


class Manifest(Record):
    """``manifest.json`` of a base folder."""

    format: Literal[1] = 1
    fingerprint: Sha256
    source: str
    task: Literal["sequence-classification"]
    family: str
    pooling: Literal["mean", "cls", "pooler"]
    bits: Literal[4, 8, 16, 32]
    block: Count
    hidden_size: Count
    layers: Count
    vocab_size: Count
    max_positions: Count
    embedding_std: Annotated[float, Field(gt=0)]
    parameters: Count
    linears: list[Linear] = Field(min_length=1)
    head: Head
    graph: Graph
    tensors: dict[str, TensorEntry]
    files: dict[str, FileEntry]
    made_with: dict[str, str]

    def to_json(self) -> str:
        """The file's text: sorted, indented, newline at the end."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"


def fingerprint(
    *,
    tensors: dict[str, TensorEntry],
    architecture: dict[str, Any],
    tokenizer_sha256: str,
) -> str:
    """The base's identity from the digests of its tensors, its architecture and its tokenizer.

    ``architecture`` holds what changes the function the tensors compute: family, pooling, bits,
    block and the sha256 of config.json.
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
        },
        tokenizer_sha256=manifest.files[TOKENIZER].sha256,
    )


def parse_manifest(text: str, *, source: str) -> Manifest:
    """Read ``manifest.json``. Raises ArtefactError; file names that leave the folder are refused.

    The fingerprint must be that of the tensors, architecture and tokenizer listed; whether the files
    hold these tensors is for whoever opens them.
    """
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the document"
        raise ArtefactError(
            f"{source}: {where}: {fault['msg']}", "build the base again or fetch an intact copy"
        ) from None
    for name in manifest.files:
        if not SAFE_NAME.match(name):
            raise ArtefactError(
                f"{source}: {name!r} is not a plain file name", "do not use this base"
            )
    if not {CONFIG, TOKENIZER} <= set(manifest.files) or (
        fingerprint_of(manifest) != manifest.fingerprint
    ):
        raise ArtefactError(
            f"{source}: the fingerprint is not that of what the manifest lists",
            "do not use this base",
        )
    return manifest
