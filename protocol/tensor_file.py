"""Float32 tensors as a safetensors file, in the one form that this project writes. (P-4.9)

The format leaves the order of tensors and the spelling of the header to the writer. Here they are
what the safetensors library writes, so equal tensors are equal bytes; and as every other form is
refused, a file that was read holds nothing but its tensors and metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from protocol.documents import OddError, parse_json
from protocol.errors import ArtefactError
from protocol.layout import Tensors

HEADER_BYTES, DIMENSIONS = 2**24, 8  # at most, in what is read
METADATA = "__metadata__"
REMEDY = "fetch or restore the file: it is damaged, or something else wrote it"


def encode_tensors(tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    """The file's bytes. ``metadata`` is listed by key, and left out when empty."""
    described = {name: tensors[name].shape for name in sorted(tensors)}
    data = (np.ascontiguousarray(tensors[name], "<f4").tobytes() for name in described)
    return b"".join([_head(described, metadata), *data])


def decode_tensors(data: bytes | memoryview, *, source: str) -> tuple[Tensors, dict[str, str]]:
    """(tensors by name, metadata), copies of the bytes.

    Raises ArtefactError, which names ``source``, for any other bytes than :func:`encode_tensors` gives.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= size <= min(HEADER_BYTES, len(data) - 8):
        raise _bad(source, "its header is cut off, or its length absurd")
    entries = _parse_header(bytes(data[8 : 8 + size]), source)
    metadata = entries.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise _bad(source, "its metadata is not text by name")
    body, start = memoryview(data)[8 + size :], 0
    tensors: Tensors = {}
    for name, entry in entries.items():
        shape = _shape(name, entry, start, len(body), source)
        end = start + 4 * math.prod(shape)
        tensors[name] = np.frombuffer(body[start:end], "<f4").reshape(shape).astype(np.float32)
        start = end
    if start != len(body):
        raise _bad(source, f"{len(body) - start} bytes follow the last tensor")
    if list(tensors) != sorted(tensors) or not _is_ours(data[: 8 + size], tensors, metadata):
        raise _bad(source, "its header is spelled or ordered in another way than ours")
    return tensors, metadata


def _head(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> bytes:
    """Length and header of tensors of ``shapes``, in that order."""
    header: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _is_ours(head: bytes | memoryview, tensors: Tensors, metadata: Mapping[str, str]) -> bool:
    return head == _head({name: value.shape for name, value in tensors.items()}, metadata)


def _parse_header(text: bytes, source: str) -> dict[str, Any]:
    try:
        header = parse_json(text, most=HEADER_BYTES)
    except OddError as odd:
        raise _bad(source, f"its header cannot be read: {odd}") from None
    if not isinstance(header, dict):
        raise _bad(source, "its header is no object")
    return header


def _shape(name: str, entry: Any, start: int, size: int, source: str) -> tuple[int, ...]:
    """The shape of a tensor that has to begin at ``start`` of ``size`` bytes."""
    name = ascii(name[:80])  # a stranger's
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad(source, f"tensor {name} is not described by dtype, shape and data_offsets")
    if entry["dtype"] != "F32":
        raise _bad(source, f"tensor {name} is not of dtype F32")
    shape, offsets = entry["shape"], entry["data_offsets"]
    for numbers, most in ((shape, DIMENSIONS), (offsets, 2)):
        if not isinstance(numbers, list) or len(numbers) > most or not all(map(_is_size, numbers)):
            raise _bad(source, f"tensor {name} has no usable shape or offsets")
    if math.prod(number or 1 for number in shape) >= 2**53:  # numpy has no such array, even empty
        raise _bad(source, f"tensor {name} has no usable shape or offsets")
    end = start + 4 * math.prod(shape)
    if offsets != [start, end]:
        raise _bad(source, f"tensor {name} overlaps, leaves a gap or has a length of its own")
    if end > size:
        raise _bad(source, f"tensor {name} is cut off")
    return tuple(shape)


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**53


def _bad(source: str, fault: str) -> ArtefactError:
    return ArtefactError(f"{source}: {fault}", REMEDY)
