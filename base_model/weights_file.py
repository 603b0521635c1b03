"""Where the tensors of ``weights.safetensors`` lie, and what they are; read in pieces, never whole."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from base_model.source_files import first_line
from protocol.encoding import hasher_of
from protocol.errors import ArtefactError
from protocol.manifest import TensorEntry
from storage.regular import PIECE, open_regular

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
HEADER = 2**26  # bytes of a file's own description
DIGESTED = "tensor"  # the tag of a tensor's digest (P-1.3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Bytes ``offset`` to ``offset + length`` of the file hold a tensor, row by row, little-endian.

    ``kind``: its type in the format's words, as ``F32``.
    """

    kind: str
    shape: tuple[int, ...]
    offset: int
    length: int


def places_of(path: Path, *, remedy: str = REBUILD) -> dict[str, Place]:
    """Each tensor's place in a safetensors file. Raises ArtefactError, with ``remedy``, for any other."""
    try:
        with safe_open(path, "np"):  # the library looks at the header: sizes fit, nothing overlaps
            pass
        with open_regular(path) as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > HEADER:
                raise ValueError(f"its header has {size} bytes")
            header = json.loads(file.read(size))
        return {
            name: Place(
                kind=entry["dtype"],
                shape=tuple(entry["shape"]),
                offset=8 + size + entry["data_offsets"][0],
                length=entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {first_line(error)}", remedy) from None
    except (SafetensorError, ValueError, KeyError, struct.error, RecursionError) as error:
        raise ArtefactError(f"{path} is cut or damaged: {first_line(error)}", remedy) from None


def tensor_entries(path: Path) -> dict[str, TensorEntry]:
    """Dtype, shape and digest of every tensor in the file, as the fingerprint covers them. (P-1.3)

    Raises ArtefactError.
    """
    places = places_of(path)
    if odd := sorted({place.kind for place in places.values()} - DTYPES.keys()):
        raise ArtefactError(f"{path}: has tensors of type {odd[0]}", REBUILD)
    try:
        with open_regular(path) as file:
            entries = {}
            for name, place in places.items():
                file.seek(place.offset)
                hasher, left = hasher_of(DIGESTED), place.length
                while left and (data := file.read(min(PIECE, left))):
                    hasher.update(data)
                    left -= len(data)
                entries[name] = _entry(DTYPES[place.kind], place.shape, hasher)
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}", REBUILD) from None
    return entries


def tensor_entry(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> TensorEntry:
    """The same of a tensor in memory."""
    hasher = hasher_of(DIGESTED)
    hasher.update(array.tobytes())
    return _entry(str(array.dtype), array.shape, hasher)


def _entry(dtype: str, shape: tuple[int, ...], hasher: hashlib._Hash) -> TensorEntry:
    return TensorEntry(dtype=dtype, shape=list(shape), sha256=hasher.hexdigest())
