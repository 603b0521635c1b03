"""The container of a GGUF file: its keys, and where its tensors lie.

The header is walked here and not by the ``gguf`` package's reader: that package lists a numpy view per word
of the vocabulary, and follows counts and lengths that the file states wherever they lead. Here nothing is
read or allocated before it is known to lie in the file. Layout, little-endian: ``GGUF``, version uint32,
counts of tensors and keys uint64, the keys, the tensors' entries, padding, the tensors' data.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from base_model.source_files import FETCH, check_file
from protocol.errors import ArtefactError
from storage.regular import open_regular

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_KEYS, MOST_TENSORS, MOST_DIMENSIONS = 2**16, 2**16, 4
MOST_ITEMS = 2**21  # of an array: words of a vocabulary, and their merges
MOST_HEADER = 2**26  # bytes: ten times that of the largest vocabularies
MOST_NAME, MOST_TEXT = 2**16, 2**24  # bytes, of a key and of a value
ALIGNMENT, MOST_ALIGNMENT = 32, 2**16
LEAST_ENTRY = 8 + 4  # bytes of the length of a name, and of a type
SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


@dataclass(frozen=True, eq=False)
class Numbers:
    """An array of numbers as a value. Equal to nothing, where numpy's arrays would compare item by item."""

    values: npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A tensor of the file: ``shape`` as numpy has it, rows first; ``length`` bytes from ``offset``."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Container:
    """A header that has been read. ``state``: size and time of the file, in which every tensor lies.

    ``keys``: numbers, texts, lists of texts, and :class:`Numbers`.
    """

    path: Path
    state: tuple[int, int]
    keys: Mapping[str, Any]
    tensors: Mapping[str, Entry]

    def raw(self, entry: Entry) -> bytes:
        """The bytes of a tensor. Raises ArtefactError where the file is not what it was."""
        try:
            with open_regular(self.path) as file:
                file.seek(entry.offset)
                data = file.read(entry.length)
                state = _state(file)
        except OSError as error:
            raise ArtefactError(f"{self.path} cannot be read: {error.strerror}", FETCH) from None
        if len(data) != entry.length or state != self.state:
            raise ArtefactError(
                f"{self.path} has changed while it was read", "leave it, and begin again"
            )
        return data


def shown(value: Any) -> str:
    """The value of a key, short enough for an error."""
    if isinstance(value, str):
        return repr(value[:60])
    return repr(value) if isinstance(value, int | float) else "an array"


def read_container(path: Path) -> Container:
    """Keys and places of tensors of a file. Raises ArtefactError for what is no whole GGUF file."""
    check_file(path)
    try:
        with open_regular(path) as file:
            return _read(_Cursor(file, path))
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}", FETCH) from None


def _state(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


class _Cursor:
    """Reads forward and never beyond the file; ``place`` is where it stands."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path, self.place = file, path, 0
        self.state = _state(file)
        self.size, _ = self.state

    def odd(self, fault: str) -> ArtefactError:
        return ArtefactError(f"{self.path}: {fault}", FETCH)

    def left(self) -> int:
        return min(self.size, MOST_HEADER) - self.place

    def take(self, length: int, what: str) -> bytes:
        if length > self.left():
            if self.size > MOST_HEADER:
                raise self.odd(f"its header is longer than {MOST_HEADER} bytes")
            raise self.odd(f"the file is truncated, it ends in {what}")
        data = self.file.read(length)
        if len(data) != length:
            raise self.odd(f"the file is truncated, it ends in {what}")
        self.place += length
        return data

    def number(self, kind: str, what: str) -> int:
        return int(struct.unpack(kind, self.take(struct.calcsize(kind), what))[0])

    def text(self, what: str, *, most: int) -> str:
        length = self.number("<Q", what)
        if length > most:
            raise self.odd(f"{what} has {length} bytes, more than {most}")
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            raise self.odd(f"{what} is not UTF-8") from None


def _read(cursor: _Cursor) -> Container:
    tensors, keys = _counts(cursor)
    values: dict[str, Any] = {}
    for _ in range(keys):
        name = cursor.text("the name of a key", most=MOST_NAME)
        if name in values:
            raise cursor.odd(f"the key {name!r} is there twice")
        values[name] = _value(cursor, name)
    _check_whole(cursor, values)
    entries = _entries(cursor, tensors, values)
    return Container(path=cursor.path, state=cursor.state, keys=values, tensors=entries)


def _counts(cursor: _Cursor) -> tuple[int, int]:
    """Numbers of tensors and of keys. Raises ArtefactError for another format, version or order."""
    what = "its first 24 bytes"
    if cursor.size < len(MAGIC) or cursor.take(len(MAGIC), what) != MAGIC:
        raise ArtefactError(
            f"{cursor.path} is not a GGUF file", "name a file that llama.cpp can read"
        )
    version = cursor.number("<I", what)
    if version and not version & 0xFFFF:
        raise ArtefactError(
            f"{cursor.path} is a big-endian GGUF file", "take the file for little-endian machines"
        )
    if version not in VERSIONS:
        raise ArtefactError(
            f"{cursor.path} is a GGUF file of version {version}; versions 2 and 3 can be read",
            "convert the model again with a current llama.cpp",
        )
    tensors, keys = cursor.number("<Q", what), cursor.number("<Q", what)
    for count, most, kind in ((tensors, MOST_TENSORS, "tensors"), (keys, MOST_KEYS, "keys")):
        if count > min(most, cursor.left() // LEAST_ENTRY):
            raise cursor.odd(f"it states {count} {kind}, which cannot be in it")
    return tensors, keys


def _value(cursor: _Cursor, name: str) -> Any:
    what = f"the key {name!r}"
    kind = _kind(cursor, what)
    if kind is GGUFValueType.STRING:
        return cursor.text(what, most=MOST_TEXT)
    if kind is not GGUFValueType.ARRAY:
        return _numbers(cursor, kind, 1, what)[0].item()
    kind = _kind(cursor, what)
    if kind is GGUFValueType.ARRAY:
        raise cursor.odd(f"{what} is an array of arrays")
    count = cursor.number("<Q", what)
    width = 8 if kind is GGUFValueType.STRING else np.dtype(SCALARS[kind]).itemsize
    if count > MOST_ITEMS:
        raise cursor.odd(f"{what} has {count} items, more than {MOST_ITEMS}")
    if count > cursor.left() // width:
        raise cursor.odd(f"{what} has {count} items, which cannot be in the file")
    if kind is GGUFValueType.STRING:
        return [cursor.text(what, most=MOST_TEXT) for _ in range(count)]
    return Numbers(_numbers(cursor, kind, count, what))


def _kind(cursor: _Cursor, what: str) -> GGUFValueType:
    number = cursor.number("<I", what)
    try:
        return GGUFValueType(number)
    except ValueError:
        raise cursor.odd(f"{what} has the unknown type {number}") from None


def _numbers(cursor: _Cursor, kind: GGUFValueType, count: int, what: str) -> npt.NDArray[Any]:
    dtype = np.dtype(SCALARS[kind])
    return np.frombuffer(cursor.take(count * dtype.itemsize, what), dtype)


def _check_whole(cursor: _Cursor, keys: Mapping[str, Any]) -> None:
    parts = keys.get("split.count", 1)
    if parts not in (0, 1):
        raise ArtefactError(
            f"{cursor.path} is only a part of a model split into {shown(parts)} files",
            "merge the files with `llama-gguf-split --merge`",
        )


def _entries(cursor: _Cursor, count: int, keys: Mapping[str, Any]) -> dict[str, Entry]:
    alignment = keys.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= MOST_ALIGNMENT or alignment % 8:
        raise cursor.odd(f"its tensors cannot be aligned to {shown(alignment)} bytes")
    entries: dict[str, Entry] = {}
    for _ in range(count):
        entry = _entry(cursor)
        if entry.name in entries:
            raise cursor.odd(f"the tensor {entry.name!r} is there twice")
        entries[entry.name] = entry
    start = -(-cursor.place // alignment) * alignment
    placed: dict[str, Entry] = {}
    end = 0  # of the tensor before: two that overlap are a sign of damage
    for entry in sorted(entries.values(), key=lambda entry: entry.offset):
        if entry.offset % alignment or entry.offset < end:
            raise cursor.odd(f"the tensor {entry.name!r} is misplaced")
        end = entry.offset + entry.length
        if start + end > cursor.size:
            raise cursor.odd(
                f"the tensor {entry.name!r} ends at byte {start + end}, "
                f"the file already at {cursor.size}: it is truncated"
            )
        placed[entry.name] = Entry(
            name=entry.name,
            type=entry.type,
            shape=entry.shape,
            offset=start + entry.offset,
            length=entry.length,
        )
    return placed


def _entry(cursor: _Cursor) -> Entry:
    """An entry whose offset is still from the beginning of the data."""
    name = cursor.text("the name of a tensor", most=MOST_NAME)
    what = f"the tensor {name!r}"
    dimensions = cursor.number("<I", what)
    if not 0 < dimensions <= MOST_DIMENSIONS:
        raise cursor.odd(f"{what} has {dimensions} dimensions")
    shape = tuple(cursor.number("<Q", what) for _ in range(dimensions))[::-1]
    number = cursor.number("<I", what)
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise cursor.odd(f"{what} has the unknown type {number}") from None
    block, bytes_of_block = GGML_QUANT_SIZES[kind]
    if not all(shape) or shape[-1] % block:
        raise cursor.odd(f"{what} cannot have the shape {list(shape)} in {kind.name}")
    return Entry(
        name=name,
        type=kind,
        shape=shape,
        offset=cursor.number("<Q", what),
        length=prod(shape) // block * bytes_of_block,
    )
