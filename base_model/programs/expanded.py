"""A program whose backward half reads floats: frozen weights expanded once instead of at every step.

For a few short texts expanding the codes takes as long as all products of a step together. Who has the
memory, eight bytes a number (ONNX Runtime packs a second copy for its products), expands them when the
session is opened. The same numbers are multiplied, in another order of additions. It is a matter of whoever
runs the program: the program itself, and what names it, stay as they are. (docs/adr/0097)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from base_model.programs.frozen import ROWS
from base_model.programs.session import open_session
from protocol.layout import Tensors

BYTES = 8  # of a number: as it is handed over, and packed
EXPANDERS = frozenset({"GatherBlockQuantized", "Cast"})
NOWHERE = "expanded"  # the file of a tensor that its session is handed


def expanded(graph: bytes, base: Path, *, most: int) -> tuple[bytes, Tensors]:
    """A program's training ``graph`` and the floats it reads then, matrices float32 by name.

    ``base``: its folder. ``most``: bytes that they may take, packed ones among them. A graph that has more of
    them, or none, stays as it is.
    """
    model = onnx.load_model_from_string(graph)
    weights = _Weights(model.graph)
    if not weights.nodes or weights.bytes() > most:
        return graph, {}
    values = weights.values(model, base)
    weights.replace()
    return model.SerializeToString(deterministic=True), values


class _Weights:
    """Nodes of a graph that expand a whole frozen matrix, by the names of what they expand."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._held = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        self.nodes = {node.output[0]: node for node in graph.node if self._is_whole(node)}

    def _is_whole(self, node: onnx.NodeProto) -> bool:
        """All rows of codes, in order, or a Cast of 16 bits to 32."""
        source = self._held.get(node.input[0]) if node.op_type in EXPANDERS else None
        if source is None or source.data_location != TensorProto.EXTERNAL or len(source.dims) != 2:
            return False
        return node.op_type == "Cast" or self._all_rows(node.input[1], source.dims[0])

    def _all_rows(self, name: str, count: int) -> bool:
        """Whether ``name`` is 0, 1, .. ``count`` - 1, cut at a size of the gradient, which is no other."""
        cut = self._makers.get(name)
        rows = self._held.get(cut.input[0]) if cut is not None and cut.op_type == "Slice" else None
        if rows is None or list(rows.dims) != [count] or rows.data_location == TensorProto.EXTERNAL:
            return False
        return np.array_equal(numpy_helper.to_array(rows), np.arange(count))

    def _source(self, node: onnx.NodeProto) -> str:
        return f"{NOWHERE}/{node.input[0].removesuffix(ROWS)}"

    def _sizes(self, node: onnx.NodeProto) -> tuple[int, int]:
        rows, columns = self._held[node.input[0]].dims
        bits = next((item.i for item in node.attribute if item.name == "bits"), 8)
        return rows, columns * 8 // bits

    def bytes(self) -> int:
        """Of all floats; a matrix that is read in several places counts once."""
        sizes = {self._source(node): self._sizes(node) for node in self.nodes.values()}
        return sum(BYTES * rows * columns for rows, columns in sizes.values())

    def values(self, model: onnx.ModelProto, base: Path) -> Tensors:
        """The floats, by the names that :meth:`replace` gives them."""
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        for field in ("node", "input", "output", "initializer", "value_info"):
            probe.graph.ClearField(field)
        names = set[str]()
        for node in self.nodes.values():
            if self._source(node) in {item.name for item in probe.graph.output}:
                continue
            copy = probe.graph.node.add()
            copy.CopyFrom(node)
            copy.output[0] = self._source(node)
            if node.op_type != "Cast":
                copy.input[1] = self._makers[node.input[1]].input[0]
            names.update(copy.input)
            probe.graph.output.append(_floats(copy.output[0], self._sizes(node)))
        probe.graph.initializer.extend(self._held[name] for name in sorted(names))
        session = open_session(probe.SerializeToString(), base, threads=1)
        outputs = [item.name for item in probe.graph.output]
        return dict(zip(outputs, session.run(None, {}), strict=True))

    def replace(self) -> None:
        """Let every reader read the floats, and drop what nobody reads any more."""
        renamed = {name: self._source(node) for name, node in self.nodes.items()}
        sizes = {self._source(node): self._sizes(node) for node in self.nodes.values()}
        for name, dims in sizes.items():
            tensor = self._graph.initializer.add()
            tensor.name, tensor.data_type = name, TensorProto.FLOAT
            tensor.dims.extend(dims)
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=NOWHERE)
        for node in self._graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = renamed.get(name, name)
        _prune(self._graph)


def _floats(name: str, dims: Iterable[int]) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims))


def _prune(graph: onnx.GraphProto) -> None:
    """Drop nodes and constants that no output needs."""
    needed, kept = {item.name for item in graph.output}, list[onnx.NodeProto]()
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            kept.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    del graph.node[:]
    graph.node.extend(nodes)
    tensors = [item for item in graph.initializer if item.name in needed]
    kept_tensors = [onnx.TensorProto.FromString(item.SerializeToString()) for item in tensors]
    del graph.initializer[:]
    graph.initializer.extend(kept_tensors)
