"""What a graph may ask of a device: nothing outside its own files, no tensor larger than that. (P-1.8)

ONNX lets a tensor lie in another file, at any path, and claim any shape. The manifest covers the graph's
own bytes alone, so before ONNX Runtime opens them its tensors are looked at: a walk over the protobuf
fields of ONNX that may hold one, without a library, in time of the number of fields.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path

from protocol.errors import ArtefactError
from storage.regular import open_regular

MOST_DEPTH, MOST_DIMENSIONS = 8, 16  # of graphs within nodes of graphs, of a tensor
REMEDY = "do not use this base; get one from where its fingerprint was published"
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# By message: the fields that lead to tensors. (onnx.proto3)
MODEL, GRAPH, NODE, ATTRIBUTE, FUNCTION, TENSOR = [
    "model",
    "graph",
    "node",
    "attribute",
    "function",
    "tensor",
]
LEADS = {
    MODEL: {7: GRAPH, 25: FUNCTION},
    GRAPH: {1: NODE, 5: TENSOR},
    NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH},
    FUNCTION: {7: NODE, 11: ATTRIBUTE},
}
# Sparse tensors claim a dense size in a few bytes; a device does not train. None is ever exported.
REFUSED = {(MODEL, 20), (GRAPH, 15), (ATTRIBUTE, 22), (ATTRIBUTE, 23)}
DIMS, EXTERNAL, LOCATION = 1, 13, 14


def verify_graph(path: Path, *, size: int, beside: tuple[str, int] | None = None) -> None:
    """Every tensor lies in the file itself, of ``size`` bytes, or in the one ``beside``. (P-1.8)

    ``beside``: that file's name and length, where the manifest lists one. Raises ArtefactError.
    """
    try:
        with (
            open_regular(path, most=size) as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            _walk(data, 0, len(data), MODEL, 0, beside)
    except (OSError, ValueError) as error:  # among them an empty file
        raise ArtefactError(f"{path}: not a graph that can be read: {error}", REMEDY) from None


def _walk(
    data: mmap.mmap, start: int, end: int, kind: str, depth: int, beside: tuple[str, int] | None
) -> None:
    if depth > 3 * MOST_DEPTH:  # by way of node and attribute
        raise ValueError("graphs are nested too deeply")
    for field, value, stop in _fields(data, start, end):
        if (kind, field) in REFUSED:
            raise ValueError("it holds a sparse tensor, or instructions for training")
        inner = LEADS[kind].get(field)
        if inner is None:
            continue
        if stop is None:
            raise ValueError("a message that is none")
        if inner == TENSOR:
            _check_tensor(data, value, stop, beside)
        else:
            _walk(data, value, stop, inner, depth + 1, beside)


def _check_tensor(data: mmap.mmap, start: int, end: int, beside: tuple[str, int] | None) -> None:
    dims: list[int] = []
    outside: dict[bytes, bytes] = {}
    for field, value, stop in _fields(data, start, end):
        if field in (EXTERNAL, LOCATION) and beside is None and (value or stop is not None):
            raise ValueError("a tensor lies outside its file")
        if field == EXTERNAL:
            if stop is None:
                raise ValueError("a message that is none")
            entry = {f: data[v:s] for f, v, s in _fields(data, value, stop) if s is not None}
            outside[entry.get(1, b"")] = entry.get(2, b"")
        if field != DIMS:
            continue
        if stop is None:
            dims.append(value)
            if len(dims) > MOST_DIMENSIONS:
                raise ValueError("a tensor of too many dimensions")
        while stop is not None and value < stop:  # packed
            number, value = _varint(data, value, stop)
            dims.append(number)
            if len(dims) > MOST_DIMENSIONS:
                raise ValueError("a tensor of too many dimensions")
    held = end - start if not outside or beside is None else _length_beside(outside, *beside)
    # Two codes of four bits make a byte; nothing is smaller.
    if math.prod(dims) > 2 * held:
        raise ValueError("a tensor claims more than its bytes")


def _length_beside(outside: dict[bytes, bytes], name: str, size: int) -> int:
    """Bytes of a tensor in the file beside the graph. Raises ValueError for any other place."""
    if set(outside) != {b"location", b"offset", b"length"} or outside[b"location"] != name.encode():
        raise ValueError("a tensor lies outside its file")
    offset, length = outside[b"offset"], outside[b"length"]
    if not (offset.isdigit() and length.isdigit() and len(offset) < 20 and len(length) < 20):
        raise ValueError("a tensor lies at no place")
    if int(offset) + int(length) > size:
        raise ValueError("a tensor lies behind the end of its file")
    return int(length)


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """(field, value, None) of numbers, (field, first byte, one behind the last) of messages."""
    at = start
    while at < end:
        tag, at = _varint(data, at, end)
        field, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(data, at, end)
            yield field, value, None
        elif wire == BYTES:
            length, at = _varint(data, at, end)
            if length > end - at:
                raise ValueError("a field is cut off")
            yield field, at, at + length
            at += length
        elif wire in (FIXED32, FIXED64):
            at += 8 if wire == FIXED64 else 4
            if at > end:
                raise ValueError("a field is cut off")
            yield field, 0, None
        else:
            raise ValueError("a field of an unknown kind")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("a number is cut off")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("a number has no end")
