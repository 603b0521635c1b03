"""One step backwards through a graph: what a rule is handed, and what it may hand back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from base_model.programs.tape import Tape

Shapes = Mapping[str, Sequence[int | str]]


class UndifferentiableError(ValueError):
    """An operator stands between a wanted tensor and the scalar, and has no derivative here."""


@dataclass(frozen=True)
class Product:
    """A gradient that is a matrix product of two dimensions: one Gemm, which adds what is there already."""

    left: str
    right: str
    left_transposed: bool = False
    right_transposed: bool = False

    def write(self, tape: Tape, addend: str | None) -> str:
        """The Gemm."""
        return tape.op(
            "Gemm",
            self.left,
            self.right,
            *([addend] if addend else []),
            transA=int(self.left_transposed),
            transB=int(self.right_transposed),
        )


@dataclass(frozen=True)
class Spread:
    """A gradient that is the same along the last axis: of a sum over it, or over blocks of a row.

    It is written as what is added, broadcast, where there is something already. ``value`` (..., 1);
    ``stretch``: ones, and the last axis's size; ``sizes`` of all axes, of which names are free; ``outer``:
    those it is asked for in, -1 where one is free, if they are others.
    """

    value: str
    stretch: tuple[int, ...]
    sizes: tuple[int | str, ...]
    outer: tuple[int, ...] = ()

    def reshaped(self, outer: tuple[int, ...]) -> Spread:
        """The same in another shape."""
        return replace(self, outer=outer)

    def write(self, tape: Tape, addend: str | None) -> str:
        """The sum with ``addend``, or itself."""
        inner = [-1 if isinstance(size, str) else size for size in self.sizes]
        if addend is None or inner.count(-1) > 1:
            whole = tape.op("Expand", self.value, tape.axes(*self.stretch))
            if self.outer:
                whole = tape.op("Reshape", whole, tape.axes(*self.outer))
            return tape.op("Add", addend, whole) if addend else whole
        if not self.outer:
            return tape.op("Add", addend, self.value)
        blocks = tape.op("Reshape", addend, tape.axes(*inner))
        return tape.op("Reshape", tape.op("Add", blocks, self.value), tape.axes(*self.outer))


@dataclass(frozen=True)
class Step:
    """One node to go back through: its output's gradient, and which inputs ask for theirs."""

    tape: Tape
    node: onnx.NodeProto
    gradient: str
    wanted: frozenset[int]
    shapes: Shapes
    weights: Callable[[onnx.NodeProto, str], str]

    def attribute(self, name: str, default: Any = None) -> Any:
        """The node's attribute, or ``default``."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default

    def rank(self, name: str) -> int:
        """Number of dimensions of a tensor."""
        return len(self.shapes[name])

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Write a node."""
        return self.tape.op(kind, *inputs, **attributes)

    def reshaping(self, name: str) -> str:
        """Shape of ``name`` for a Reshape of the gradient to it: a constant, if one size at most is free.

        A constant keeps nothing alive and costs no node. 0 stands for the gradient's own size there.
        """
        have, free = list(self.shapes[self.node.output[0]]), 0
        sizes = []
        for axis, size in enumerate(self.shapes[name]):
            if isinstance(size, str):
                same = axis < len(have) and have[axis] == size
                free += not same
                size = 0 if same else -1
            sizes.append(size)
        return self.tape.axes(*sizes) if free <= 1 else self.op("Shape", name)

    def over_last(self) -> bool:
        """Whether the node, a reduction, is over the last axis alone: its axes are a constant."""
        if len(self.node.input) < 2:
            return False
        constants = {item.name: item for item in self.tape.graph.initializer}
        axes = constants.get(self.node.input[1])
        last = self.rank(self.node.input[0]) - 1
        return axes is not None and numpy_helper.to_array(axes).tolist() in ([-1], [last])

    def like(self, index: int, value: str) -> str:
        """``value``, of the output's shape, summed to the shape of an input that was broadcast.

        A size that is known by name alone may be 1 while the graph runs: what is summed is then seen there.
        """
        name = self.node.input[index]
        have, want = list(self.shapes[self.node.output[0]]), list(self.shapes[name])
        extra = len(have) - len(want)
        if extra:
            value = self.op("ReduceSum", value, self.tape.axes(*range(extra)), keepdims=0)
        sizes = list(enumerate(zip(want, have[extra:], strict=True)))
        if any(isinstance(size, str) and size != whole for _, (size, whole) in sizes):
            ones = self.op("Equal", self.op("Shape", name), self.tape.constant(1, np.int64))
            axes = self.op("Squeeze", self.op("NonZero", ones), self.tape.axes(0))
            return self.op("ReduceSum", value, axes, keepdims=1, noop_with_empty_axes=1)
        stretched = [axis for axis, (size, whole) in sizes if size == 1 and whole != 1]
        if stretched:
            value = self.op("ReduceSum", value, self.tape.axes(*stretched), keepdims=1)
        return value


Gradients = dict[int, "str | Product | Spread"]
Rule = Callable[[Step], Gradients]
