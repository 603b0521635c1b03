"""The tensors of a GGUF file by Hugging Face's names, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from base_model.decoder.source import CodedWeight, Floats
from base_model.gguf.architecture import OTHER, Place
from base_model.gguf.blocks import READABLE, decode
from base_model.gguf.container import Container
from base_model.source_files import FETCH
from protocol.errors import ArtefactError


class GgufTensors(Mapping[str, Floats | CodedWeight]):
    """Reads a tensor whenever it is asked for, and keeps none."""

    def __init__(self, container: Container, places: Mapping[str, Place]) -> None:
        """Raises ArtefactError where tensors are missing, left over, or not as the configuration says."""
        _check(container, places)
        self._container, self._places = container, places

    def __getitem__(self, name: str) -> Floats | CodedWeight:
        """Raises ArtefactError where the file has changed, or a weight is no number."""
        place = self._places[name]
        entry = self._container.tensors[place.name]
        weight = decode(self._container.raw(entry), entry.type, place.shape, place.rows())
        if isinstance(weight, CodedWeight):
            parts = [weight.scales] if weight.offsets is None else [weight.scales, weight.offsets]
        else:
            parts = [weight]
        if not all(np.isfinite(part).all() for part in parts):
            raise ArtefactError(
                f"{self._container.path}: the tensor {place.name!r} holds infinities or no numbers",
                FETCH,
            )
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _check(container: Container, places: Mapping[str, Place]) -> None:
    path, tensors = container.path, container.tensors
    for place in places.values():
        entry = tensors.get(place.name)
        if entry is None:
            raise ArtefactError(f"{path}: the tensor {place.name!r} is missing", FETCH)
        if entry.shape != place.shape:
            raise ArtefactError(
                f"{path}: the tensor {place.name!r} has the shape {list(entry.shape)}, "
                f"its keys ask for {list(place.shape)}",
                FETCH,
            )
        if entry.type not in READABLE:
            raise ArtefactError(
                f"{path}: the tensor {place.name!r} is {entry.type.name}, which cannot be read",
                OTHER,
            )
    left = sorted(set(tensors) - {place.name for place in places.values()})
    if left:
        raise ArtefactError(
            f"{path}: the tensor {left[0]!r} has no place in a model of its architecture", OTHER
        )
