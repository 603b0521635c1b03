"""A checkpoint's tensors, read when they are asked for: one safetensors file or shards, as float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from base_model.checkpoint import weight_files
from base_model.decoder.source import Floats
from base_model.source_files import FETCH, check_file, read_object
from base_model.weights_file import Place, places_of
from protocol.errors import ArtefactError
from storage.regular import open_regular

KINDS = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2"}
BRAIN = "BF16"  # the upper half of a float32


class CheckpointTensors(Mapping[str, Floats]):
    """Tensors of a folder by their names in it; a value is read anew whenever it is asked for.

    Raises ArtefactError: at once for a file that is missing, cut or of another kind, when asked for a
    tensor that holds no floats, or no finite ones.
    """

    def __init__(self, folder: Path) -> None:
        self._places: dict[str, tuple[Path, Place]] = {}
        for path in _files(folder):
            for name, place in _places(path).items():
                if name in self._places:
                    raise ArtefactError(f"{path} has {name} a second time", FETCH)
                self._places[name] = path, place

    def __getitem__(self, name: str) -> Floats:
        return _read(name, *self._places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


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
            absent = {n for n, file in listed.items() if file == shard.name} - _places(shard).keys()
            if absent:
                raise ArtefactError(f"{shard} has no {min(absent)}, which the index says", FETCH)
    return files


def _places(path: Path) -> dict[str, Place]:
    check_file(path)
    return places_of(path, remedy=FETCH)


def _read(name: str, path: Path, place: Place) -> Floats:
    if place.kind not in KINDS:
        raise ArtefactError(
            f"{path}: {name} is {place.kind}, not a float weight",
            "name the model as it was before it was quantised",
        )
    try:
        with open_regular(path) as file:
            file.seek(place.offset)
            data = file.read(place.length)
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}", FETCH) from None
    if len(data) != place.length:
        raise ArtefactError(f"{path} became shorter", FETCH)
    numbers = np.frombuffer(data, KINDS[place.kind]).reshape(place.shape)
    if place.kind == BRAIN:
        values = (numbers.astype(np.uint32) << 16).view(np.float32)
    else:
        values = numbers.astype(np.float32)
    if not np.isfinite(values).all():
        raise ArtefactError(
            f"{path}: {name} has NaN or infinity", "use an earlier checkpoint of the model"
        )
    return values
