"""A graph under construction: nodes in the order of computation, tensors by name, inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from base_model.graph_data import IR_VERSION, OPSET, OutsideFile
from protocol.manifest import GRAPH_DATA, Slot

MICROSOFT = "com.microsoft"
Dimensions = list[int | str]
Array = npt.NDArray[Any]


class Outside(Protocol):
    """Where tensors lie that are not in a graph's own file."""

    def holds(self, tensor: TensorProto, value: Array) -> bool:
        """Whether ``value`` lies there; if so, ``tensor`` then says where."""


class Nodes:
    """What is added is named by its caller, so that a profile of the graph can be read."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, Array] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._shapes: list[onnx.ValueInfoProto] = []
        self._optional: set[str] = set()
        self.slots: list[Slot] = []
        self.joined: dict[str, list[str]] = {}

    def add(self, kind: str, inputs: list[str], output: str, /, **attributes: Any) -> str:
        """A node of ONNX with one output; returns it."""
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def add_contrib(
        self, kind: str, inputs: list[str], outputs: list[str], /, **attributes: Any
    ) -> None:
        """A node of ONNX Runtime's own operators."""
        node = helper.make_node(kind, inputs, outputs, domain=MICROSOFT, **attributes)
        self._nodes.append(node)

    def split(self, value: str, outputs: list[str], sizes: tuple[int, ...] = ()) -> None:
        """Parts of the last dimension, equal ones unless their sizes are said."""
        inputs, how = [value], {"num_outputs": len(outputs)}
        if sizes:
            inputs, how = [value, self.numbers("/".join(map(str, sizes)), list(sizes))], {}
        self._nodes.append(helper.make_node("Split", inputs, outputs, axis=-1, **how))

    def halves(self, value: str, outputs: list[str]) -> None:
        """The upper and the lower half of the rows."""
        self._nodes.append(helper.make_node("Split", [value], outputs, axis=0, num_outputs=2))

    def tensor(self, name: str, value: Array) -> str:
        """A constant. The name says what it is: a second one of the same name is the same."""
        self._tensors.setdefault(name, value)
        return name

    def numbers(self, name: str, values: list[int] | int) -> str:
        """A constant of int64: shapes, axes."""
        return self.tensor(name, np.array(values, np.int64))

    def number(self, name: str, value: float) -> str:
        """A scalar of float32."""
        return self.tensor(name, np.array(value, np.float32))

    def input(self, name: str, kind: int, shape: Dimensions) -> str:
        """An input that callers have to give."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def slot(self, name: str, shape: Dimensions, default: Array) -> str:
        """An optional input of float32: a tensor that a caller may override. (P-1.11)"""
        if name not in self._tensors:
            self.slots.append(Slot(name=name, dtype="float32", shape=shape))
        return self.optional(name, shape, default)

    def optional(self, name: str, shape: Dimensions, default: Array) -> str:
        """An input of float32 with a default, which is no slot of an adapter."""
        if name not in self._tensors:
            self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
            self._tensors[name] = default
            self._optional.add(name)
        return name

    def joined_slots(self, joined: str, parts: list[str], slots: list[Slot]) -> None:
        """The slots of linears that are one product, ``joined``, and have the inputs of that. (P-1.13)"""
        self.joined[joined] = parts
        self.slots += slots

    def output(self, name: str, kind: int, shape: Dimensions) -> None:
        """An output of the graph."""
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def shape(self, name: str, shape: Dimensions) -> str:
        """Of a float tensor within, where sizes that are equal would not be seen to be."""
        self._shapes.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def model(self, outside: Outside | None = None) -> onnx.ModelProto:
        """The graph, with its tensors inside, but for those that ``outside`` holds."""
        return self._model(outside)

    @property
    def bytes(self) -> int:
        """Of all its tensors together."""
        return sum(value.nbytes for value in self._tensors.values())

    def save(self, path: Path, *, most: int) -> None:
        """Write the graph; tensors of more than ``most`` bytes together lie in ``graph.data`` beside it."""
        save_graphs({path: self}, most=most)

    def write(self, path: Path, outside: Outside | None) -> None:
        """Write the graph, its tensors to ``outside`` where there is such a file."""
        onnx.save(self._model(outside), str(path))

    def _model(self, outside: Outside | None) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, value_info=self._shapes
        )
        for name, value in self._tensors.items():
            tensor = TensorProto(name=name, dims=value.shape)
            tensor.data_type = helper.np_dtype_to_tensor_dtype(value.dtype)
            if name in self._optional or not (outside and outside.holds(tensor, value)):
                tensor.raw_data = value.tobytes()
            graph.initializer.append(tensor)
        versions = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(
            graph, opset_imports=versions, ir_version=IR_VERSION, producer_name="fedge"
        )


def save_graphs(graphs: Mapping[Path, Nodes], *, most: int) -> None:
    """Write graphs of one folder; tensors of more than ``most`` bytes together lie in one ``graph.data``."""
    outside = None
    if sum(nodes.bytes for nodes in graphs.values()) > most:
        outside = OutsideFile(next(iter(graphs)).parent / GRAPH_DATA)
    for path, nodes in graphs.items():
        nodes.write(path, outside)
