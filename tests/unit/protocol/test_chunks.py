"""The list of a base's pieces: it covers the manifest's files exactly, or is refused."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.chunks import CHUNK_BYTES, CHUNKS, chunks_of, parse_chunks
from protocol.errors import ArtefactError
from protocol.manifest import FileEntry


def entry(data: bytes) -> FileEntry:
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


@given(
    sizes=st.dictionaries(
        st.sampled_from(["a", "b.c", "d-e"]), st.sampled_from([0, 1, 2**20 - 1, 2**20, 2**20 + 1])
    )
)
def test_what_is_made_is_read(sizes: dict[str, int]) -> None:
    data = {name: bytes(size) for name, size in sizes.items()}
    pieces = {
        name: [each[at : at + CHUNK_BYTES] for at in range(0, len(each), CHUNK_BYTES)]
        for name, each in data.items()
    }
    made = chunks_of(pieces)
    text = made.to_json().encode()
    files = {name: entry(each) for name, each in data.items()} | {CHUNKS: entry(text)}
    assert parse_chunks(text, files, source="x") == made


GOOD = {"format": 1, "chunk_bytes": 4096, "files": {"a": ["0" * 64, "1" * 64], "b": []}}


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"more": 1},
        {"chunk_bytes": 4095},
        {"chunk_bytes": 2**26 + 1},
        {"chunk_bytes": 8192},
        {"files": {"a": ["0" * 64, "1" * 63], "b": []}},
        {"files": {"a": ["0" * 64], "b": []}},
        {"files": {"a": ["0" * 64, "1" * 64, "2" * 64], "b": []}},
        {"files": {"a": ["0" * 64, "1" * 64]}},
        {"files": {**GOOD["files"], "c": []}},
        {"files": {**GOOD["files"], CHUNKS: ["0" * 64]}},
    ],
)
def test_anything_else_is_refused(change: dict[str, object]) -> None:
    files = {"a": entry(bytes(5000)), "b": entry(b""), CHUNKS: entry(b"x")}
    parse_chunks(json.dumps(GOOD).encode(), files, source="x")
    with pytest.raises(ArtefactError, match=r"^x: "):
        parse_chunks(json.dumps(GOOD | change).encode(), files, source="x")


def test_what_is_no_document_is_refused() -> None:
    for data in (b"", b"{", b"[]", b"\xff", b"null"):
        with pytest.raises(ArtefactError, match=r"not JSON|not UTF-8|the document"):
            parse_chunks(data, {}, source="x")
