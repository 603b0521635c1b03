"""Where the tensors of ``weights.safetensors`` lie, and what they are; read in pieces, never whole."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from protocol.encoding import hasher_of
from protocol.errors import ArtefactError
from protocol.manifest import TensorEntry
from storage.regular import PIECE

WEIGHTS = "weights.safetensors"
REBUILD = "build the base again or fetch an intact copy"
DTYPES = {
    "F32": "float32",
    "F16": "float16",
    "U8": "uint8",
    "I8": "int8",
    "I32": "int32",
    "I64": "int64",
}
DIGESTED = "tensor"  # the tag of a tensor's digest (P-1.3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Bytes ``offset`` to ``offset + length`` of the file hold a tensor, row by row, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


def places_of(path: Path) -> dict[str, Place]:
    """Each tensor's place. Raises ArtefactError for a file that is none of its format, or has odd types."""
    try:
        with safe_open(path, "np"):  # the library looks at the header: sizes fit, nothing overlaps
            pass
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        return {
            name: Place(
                dtype=DTYPES[entry["dtype"]],
                shape=tuple(entry["shape"]),
                offset=8 + size + entry["data_offsets"][0],
                length=entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except KeyError as error:
        raise ArtefactError(f"{path}: has tensors of type {error}", REBUILD) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot be read: {error}", REBUILD) from None


def tensor_entries(path: Path) -> dict[str, TensorEntry]:
    """Dtype, shape and digest of every tensor in the file, as the fingerprint covers them. (P-1.3)

    Raises ArtefactError.
    """
    places = places_of(path)
    try:
        with path.open("rb") as file:
            entries = {}
            for name, place in places.items():
                file.seek(place.offset)
                hasher, left = hasher_of(DIGESTED), place.length
                while left and (data := file.read(min(PIECE, left))):
                    hasher.update(data)
                    left -= len(data)
                entries[name] = _entry(place.dtype, place.shape, hasher)
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read: {error}", REBUILD) from None
    return entries


def tensor_entry(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> TensorEntry:
    """The same of a tensor in memory."""
    hasher = hasher_of(DIGESTED)
    hasher.update(array.tobytes())
    return _entry(str(array.dtype), array.shape, hasher)


def _entry(dtype: str, shape: tuple[int, ...], hasher: hashlib._Hash) -> TensorEntry:
    return TensorEntry(dtype=dtype, shape=list(shape), sha256=hasher.hexdigest())
