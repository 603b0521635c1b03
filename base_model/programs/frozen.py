"""Frozen tensors of a program: read from the base's ``weights.safetensors``, where they lie.

A program's file holds no weight. Each is external data of the base's own file (ONNX's external data: a
location, an offset, a length), and ONNX Runtime maps it: one copy on disk, pages shared by whoever runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from onnx import TensorProto

from base_model.weights_file import Place, places_of
from protocol.errors import ArtefactError

SMALLEST = 256  # bytes; what is smaller stays in the program
ROWS = ".rows"  # codes and scales as matrices: another shape of the same bytes


class FrozenTensors:
    """Tensors that were read from a base's file, as ``base_model.decoder.nodes.Outside``: they stay there."""

    def __init__(self, weights: Path) -> None:
        """Raises ArtefactError for a file that is none."""
        self._weights, self._places = weights, places_of(weights)

    def holds(self, tensor: onnx.TensorProto, value: npt.NDArray[Any]) -> bool:
        """Whether the file has the tensor by this name; if so, ``tensor`` points there."""
        place = self._places.get(tensor.name)
        if place is None or value.nbytes != place.length or place.length < SMALLEST:
            return False
        _point(tensor, self._weights, place)
        return True


def refer_to_weights(model: onnx.ModelProto, weights: Path) -> None:
    """Point every tensor of ``model`` that the file holds at its bytes there.

    Raises ArtefactError for a tensor of that name with other bytes: it is of another base.
    """
    places = places_of(weights)
    with weights.open("rb") as file:
        for tensor in model.graph.initializer:
            name = tensor.name.removesuffix(ROWS)
            place = places.get(name) or places.get(name.removeprefix("model."))
            outside = tensor.data_location == TensorProto.EXTERNAL
            if outside or place is None or len(tensor.raw_data) < SMALLEST:
                continue
            file.seek(place.offset)
            if file.read(place.length) != tensor.raw_data:
                raise ArtefactError(
                    f"{weights}: {tensor.name} is not the answering graph's",
                    "fetch the base again; `fedge base verify` says which file is damaged",
                )
            _point(tensor, weights, place)


def _point(tensor: onnx.TensorProto, weights: Path, place: Place) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    where = ("location", weights.name), ("offset", place.offset), ("length", place.length)
    for key, value in where:
        tensor.external_data.add(key=key, value=str(value))
