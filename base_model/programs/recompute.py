"""A program that keeps less: what the backward half reads is computed again where it is read.

The forward half passes through narrow places, where all that follows depends on a single tensor: the stream
of hidden states between two blocks. Those are kept, and of what lies between them what ``footprint.Keep``
says; the rest is given back at once and computed a second time, block by block, on the way back (Chen et al.,
arXiv 1604.06174). Results are the same numbers from the same operators. It is a matter of whoever runs the
program: the program itself, and what names it, stay as they are. (docs/adr/0058)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx

from base_model.programs.build import GRADIENT
from base_model.programs.footprint import Keep
from base_model.programs.tape import Tape

AGAIN = "again."
PRODUCTS = frozenset({"MatMulNBits", "Gemm", "MatMul"})


def recomputing(graph: bytes, keep: Keep, *, adapter: Iterable[str]) -> bytes:
    """A program's training ``graph`` as one that keeps no more than ``keep``, to be run as it is written.

    ``adapter``: names of the adapter's tensors; other inputs are rows. A graph without narrow places stays
    as it is.
    """
    if keep is Keep.ALL:
        return graph
    model = onnx.load_model_from_string(graph)
    forward = Forward(model.graph, frozenset(adapter))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    nodes = list(_Backward(model.graph, forward, keep).nodes(nodes))
    model.graph.node.extend(nodes)
    return model.SerializeToString(deterministic=True)


class Forward:
    """The forward half of a training graph, in the order in which it runs.

    ``between``: tensors that depend on rows and on the adapter and lie before the last narrow place, and the
    nodes that make them; ``narrow``: those that are all that later ones depend on.
    """

    def __init__(self, graph: onnx.GraphProto, adapter: frozenset[str]) -> None:
        rows = {item.name for item in graph.input} - adapter
        nodes = [node for node in graph.node if not is_backward(node)]
        both = _reached(nodes, rows) & _reached(nodes, adapter)
        within = [node for node in nodes if node.output[0] in both]
        self.narrow = _narrow(within, both)
        last = max((at for at, n in enumerate(within) if n.output[0] in self.narrow), default=-1)
        self.between = {name: node for node in within[: last + 1] for name in node.output if name}
        self.beyond = both - self.between.keys()

    def first(self, node: onnx.NodeProto) -> bool:
        """Whether it reads rows and the adapter each by itself, so that nothing holds it back."""
        return not any(name in self.between for name in node.input)


def is_backward(node: onnx.NodeProto) -> bool:
    """Whether a node belongs to the half that computes gradients."""
    return node.output[0].startswith(GRADIENT)


def _reached(nodes: Iterable[onnx.NodeProto], start: Iterable[str]) -> set[str]:
    reached = set(start)
    for node in nodes:
        if not reached.isdisjoint(node.input):
            reached.update(name for name in node.output if name)
    return reached


def _narrow(nodes: list[onnx.NodeProto], tensors: set[str]) -> set[str]:
    """Those of ``tensors`` that are the only one still to be read at some point."""
    last = {name: at for at, node in enumerate(nodes) for name in node.input if name in tensors}
    narrow, open_ = set[str](), set[str]()
    for at, node in enumerate(nodes):
        open_.update(name for name in node.output if last.get(name, -1) > at)
        open_ = {name for name in open_ if last[name] > at}
        if len(open_) == 1:
            narrow |= open_
    return narrow


class _Backward:
    """Nodes of the new graph: what is read anew stands before its first reader.

    A second computation reads what is kept through a Reshape whose shape needs the newest gradient: no
    scheduler can do it earlier, and none takes it for the first one.
    """

    def __init__(self, graph: onnx.GraphProto, forward: Forward, keep: Keep) -> None:
        self._tape = Tape(graph, AGAIN)
        self._graph, self._forward, self._keep = graph, forward, keep
        self._after = set(forward.beyond)  # the loss's part, and gradients
        self._newest = ""
        self._again: dict[str, str] = {}
        self._late: dict[str, str] = {}

    def nodes(self, nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        """All, in order."""
        for node in nodes:
            new = onnx.NodeProto()
            new.CopyFrom(node)
            if is_backward(node):
                for index, name in enumerate(node.input):
                    new.input[index] = self._read(name)
                yield from self._written()
                if not self._after.isdisjoint(node.input):
                    self._after.update(node.output)
                    self._newest = node.output[0]
            yield new

    def _written(self) -> list[onnx.NodeProto]:
        nodes = list(self._graph.node)
        del self._graph.node[:]
        return nodes

    def _read(self, name: str) -> str:
        """``name`` where it is kept, else its second computation."""
        if name not in self._forward.between or self._is_kept(name):
            return name
        if name not in self._again:
            self._repeat(self._forward.between[name])
        return self._again[name]

    def _is_kept(self, name: str) -> bool:
        node = self._forward.between[name]
        return (
            name in self._forward.narrow
            or self._forward.first(node)
            or (self._keep is Keep.PRODUCTS and node.op_type in PRODUCTS)
            or not self._newest
        )

    def _repeat(self, node: onnx.NodeProto) -> None:
        inputs = [self._read(name) for name in node.input]
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for index, (before, name) in enumerate(zip(node.input, inputs, strict=True)):
            kept = name == before and name in self._forward.between
            new.input[index] = self._held_back(name) if kept else name
        for index, name in enumerate(node.output):
            if name:
                new.output[index] = self._again[name] = f"{AGAIN}{name}"
        new.name = ""
        self._graph.node.append(new)

    def _held_back(self, name: str) -> str:
        if name not in self._late:
            size = self._tape.op("Size", self._newest)
            nothing = self._tape.op("Mul", size, self._tape.constant(0, np.int64))
            shape = self._tape.op("Add", self._tape.op("Shape", name), nothing)
            self._late[name] = self._tape.op("Reshape", name, shape)
        return self._late[name]
