"""A base's ``chunks.json``: the sha256 of every piece of its other files, for copies that can be cut. (P-1.5)

It is one of the files that the manifest lists, so its own digest stands there. A base without it is
verified file by file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field

from protocol.documents import OddError, json_as
from protocol.errors import ArtefactError
from protocol.manifest import FileEntry, Record, Sha256

CHUNKS = "chunks.json"
CHUNK_BYTES = 2**20
MAX_CHUNKS_BYTES = 2**24  # of the file itself: names a quarter of a million pieces


class Chunks(Record):
    """``chunks.json``: pieces of ``chunk_bytes``, the last of a file shorter."""

    format: Literal[1] = 1
    chunk_bytes: Annotated[int, Field(ge=2**12, le=2**26)]
    files: dict[str, list[Sha256]]

    def to_json(self) -> str:
        """The file's text: sorted, no spaces, newline at the end."""
        return (
            json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")) + "\n"
        )


def chunks_of(files: Mapping[str, Iterable[bytes]]) -> Chunks:
    """From the pieces of every file, each :data:`CHUNK_BYTES` long but the last."""
    digests = {
        name: [hashlib.sha256(piece).hexdigest() for piece in pieces]
        for name, pieces in files.items()
    }
    return Chunks(chunk_bytes=CHUNK_BYTES, files=digests)


def parse_chunks(data: bytes, files: Mapping[str, FileEntry], *, source: str) -> Chunks:
    """Read ``chunks.json`` of a base with these ``files``. Raises ArtefactError unless it covers them."""
    try:
        chunks = json_as(Chunks, data, most=MAX_CHUNKS_BYTES)
    except OddError as odd:
        raise _unfit(source, str(odd)) from None
    wanted = {
        name: -(-entry.bytes // chunks.chunk_bytes)
        for name, entry in files.items()
        if name != CHUNKS
    }
    found = {name: len(digests) for name, digests in chunks.files.items()}
    if unlike := sorted(name for name in wanted | found if wanted.get(name) != found.get(name)):
        raise _unfit(source, f"{unlike[0]} has {found.get(unlike[0], 0)} pieces there")
    return chunks


def _unfit(source: str, fault: str) -> ArtefactError:
    return ArtefactError(f"{source}: {fault}", "do not use this base")
