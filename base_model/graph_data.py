"""Tensors of a graph that is too large for one file: beside it, page by page. (P-1.8)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
from onnx import TensorProto

OPSET, IR_VERSION = 20, 10
ONE_FILE = 2**30  # bytes of tensors; protobuf ends at 2 GiB
SMALL, PAGE = 1024, 4096


class OutsideFile:
    """The file beside graphs, written tensor after tensor; each begins on a page of its own.

    A tensor of the same name, in another graph, is the same and is written once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._places: dict[str, tuple[int, int]] = {}
        path.write_bytes(b"")

    def holds(self, tensor: TensorProto, value: npt.NDArray[Any]) -> bool:
        """Write a large ``value``, and let ``tensor`` point there; False for a small one."""
        if value.nbytes < SMALL:
            return False
        self.add(tensor, value.tobytes())
        return True

    def add(self, tensor: TensorProto, data: bytes) -> None:
        """Write ``data`` and let ``tensor``, which holds none of its own, point there."""
        if tensor.name not in self._places:
            with self._path.open("ab") as file:
                file.write(bytes(-self._at % PAGE))
                self._places[tensor.name] = file.tell(), file.write(data)
                self._at = file.tell()
        start, length = self._places[tensor.name]
        del tensor.external_data[:]
        places = (("location", self._path.name), ("offset", start), ("length", length))
        for key, value in places:
            tensor.external_data.add(key=key, value=str(value))
        tensor.data_location = TensorProto.EXTERNAL
