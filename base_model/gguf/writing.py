"""A GGUF file as bytes: keys, the entries of tensors, their data. The layout is in ``container``."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from base_model.decoder.source import Floats
from base_model.gguf.container import ALIGNMENT, MAGIC

VERSION = 3


def container_bytes(keys: Mapping[str, str | float], tensors: Mapping[str, Floats]) -> bytes:
    """A whole file of texts and float32 numbers as keys, and of float32 tensors, rows first."""
    head = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(keys))]
    head += [_text(name) + _value(value) for name, value in keys.items()]
    data: list[bytes] = []
    place = 0
    for name, tensor in tensors.items():
        sizes = struct.pack(f"<I{tensor.ndim}Q", tensor.ndim, *tensor.shape[::-1])
        head += [_text(name), sizes, struct.pack("<IQ", GGMLQuantizationType.F32, place)]
        data.append(_padded(np.ascontiguousarray(tensor, "<f4").tobytes()))
        place += len(data[-1])
    return _padded(b"".join(head)) + b"".join(data)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: str | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", GGUFValueType.STRING) + _text(value)
    return struct.pack("<If", GGUFValueType.FLOAT32, value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
