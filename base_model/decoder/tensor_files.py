"""A checkpoint's tensors, read when they are asked for: one safetensors file or shards, as float32."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from base_model.checkpoint import weight_files
from base_model.decoder.source import Floats
from base_model.source_files import FETCH, check_file, first_line, read_object
from protocol.errors import ArtefactError
from storage.regular import open_regular

HEADER = 2**26  # bytes of a file's own description
KINDS = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2"}
BRAIN = "BF16"  # the upper half of a float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Bytes ``offset`` to ``offset + length`` of a file hold a tensor."""

    path: Path
    kind: str
    shape: tuple[int, ...]
    offset: int
    length: int


class CheckpointTensors(Mapping[str, Floats]):
    """Tensors of a folder by their names in it; a value is read anew whenever it is asked for.

    Raises ArtefactError: at once for a file that is missing, cut or of another kind, when asked for a
    tensor that holds no floats, or no finite ones.
    """

    def __init__(self, folder: Path) -> None:
        self._stretches: dict[str, Stretch] = {}
        for path in _files(folder):
            for name, stretch in _stretches(path).items():
                if name in self._stretches:
                    raise ArtefactError(f"{path} has {name} a second time", FETCH)
                self._stretches[name] = stretch

    def __getitem__(self, name: str) -> Floats:
        return _read(name, self._stretches[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._stretches)

    def __len__(self) -> int:
        return len(self._stretches)


def _files(folder: Path) -> list[Path]:
    """The files with tensors, each of which the index names."""
    first, *shards = weight_files(folder)
    files = shards or [first]
    for path in files:
        if path.suffix != ".safetensors":
            raise ArtefactError(
                f"{path}: weights of a decoder are read from safetensors only",
                "load and save the model with a recent transformers, which writes them",
            )
    if shards:
        listed = read_object(first)["weight_map"]
        for shard in shards:
            absent = {n for n, file in listed.items() if file == shard.name} - set(
                _stretches(shard)
            )
            if absent:
                raise ArtefactError(f"{shard} has no {min(absent)}, which the index says", FETCH)
    return files


def _stretches(path: Path) -> dict[str, Stretch]:
    check_file(path)
    try:
        with safe_open(path, "np"):  # the library looks at the header: sizes fit, nothing overlaps
            pass
        with open_regular(path) as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > HEADER:
                raise ArtefactError(f"{path}: a header of {size} bytes", FETCH)
            header = json.loads(file.read(size))
        return {
            name: Stretch(
                path=path,
                kind=entry["dtype"],
                shape=tuple(entry["shape"]),
                offset=8 + size + entry["data_offsets"][0],
                length=entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except SafetensorError as error:
        raise ArtefactError(f"{path} is cut or damaged: {first_line(error)}", FETCH) from None
    except (ValueError, KeyError, struct.error, RecursionError, OSError) as error:
        raise ArtefactError(f"{path} cannot be read: {first_line(error)}", FETCH) from None


def _read(name: str, stretch: Stretch) -> Floats:
    if stretch.kind not in KINDS:
        raise ArtefactError(
            f"{stretch.path}: {name} is {stretch.kind}, not a float weight",
            "name the model as it was before it was quantised",
        )
    try:
        with open_regular(stretch.path) as file:
            file.seek(stretch.offset)
            data = file.read(stretch.length)
    except OSError as error:
        raise ArtefactError(f"{stretch.path} cannot be read: {error.strerror}", FETCH) from None
    if len(data) != stretch.length:
        raise ArtefactError(f"{stretch.path} became shorter", FETCH)
    numbers = np.frombuffer(data, KINDS[stretch.kind]).reshape(stretch.shape)
    if stretch.kind == BRAIN:
        values = (numbers.astype(np.uint32) << 16).view(np.float32)
    else:
        values = numbers.astype(np.float32)
    if not np.isfinite(values).all():
        raise ArtefactError(
            f"{stretch.path}: {name} has NaN or infinity", "use an earlier checkpoint of the model"
        )
    return values
