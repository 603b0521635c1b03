"""Frozen tensors of a program: read from the base's ``weights.safetensors``, where they lie.

A program's file holds no weight. Each is external data of the base's own file (ONNX's external data: a
location, an offset, a length), and ONNX Runtime maps it: one copy on disk, pages shared by whoever runs.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import onnx
from onnx import TensorProto

from protocol.errors import ArtefactError

SMALLEST = 256  # bytes; what is smaller stays in the program
ROWS = ".rows"  # codes and scales as matrices: another shape of the same bytes


def refer_to_weights(model: onnx.ModelProto, weights: Path) -> None:
    """Point every tensor of ``model`` that the file holds at its bytes there.

    Raises ArtefactError for a tensor of that name with other bytes: it is of another base.
    """
    places = _places(weights)
    with weights.open("rb") as file:
        for tensor in model.graph.initializer:
            place = places.get(tensor.name.removeprefix("model.").removesuffix(ROWS))
            if place is None or len(tensor.raw_data) < SMALLEST:
                continue
            offset, length = place
            file.seek(offset)
            if file.read(length) != tensor.raw_data:
                raise ArtefactError(
                    f"{weights}: {tensor.name} is not the answering graph's",
                    "fetch the base again; `fedge base verify` says which file is damaged",
                )
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", weights.name), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))


def _places(weights: Path) -> dict[str, tuple[int, int]]:
    """Offset in the file and length in bytes of each tensor."""
    with weights.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return {
        name: (
            8 + size + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }
