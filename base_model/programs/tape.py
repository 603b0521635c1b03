"""Nodes written one after the other into an ONNX graph, and arithmetic that writes them.

Names are counted and constants are named by their content, so the same calls give the same bytes on
every machine. :class:`Symbol` has the operators that numpy's arrays have too: a function written with
``@ * / + - .T .transpose`` and those of ``protocol.forms`` computes with arrays and writes a graph with
symbols.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

MICROSOFT = "com.microsoft"
DETACHED = "detached."  # prefix of tensors that gradients take for constants


class Tape:
    """Appends to ``graph``; every new name begins with ``prefix``."""

    def __init__(self, graph: onnx.GraphProto, prefix: str) -> None:
        self.graph = graph
        self._prefix = prefix
        self._count = 0

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """One node with one output; its name."""
        self._count += 1
        name = f"{self._prefix}{self._count}.{kind}"
        node = helper.make_node(kind, list(inputs), [name], domain=domain, **attributes)
        self.graph.node.append(node)
        return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """A small tensor; equal ones are written once."""
        array = np.asarray(value, dtype)
        content = f"{array.dtype.str}{array.shape}".encode() + array.tobytes()
        name = f"constant.{hashlib.sha256(content).hexdigest()[:16]}"
        # a graph may be written by two tapes in turn
        if not any(item.name == name for item in self.graph.initializer):
            self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def axes(self, *axes: int) -> str:
        """Axes as operators take them since opset 13."""
        return self.constant(axes, np.int64)


@dataclass(frozen=True)
class Symbol:
    """A tensor that a graph will hold. Operators write nodes; a number becomes a constant."""

    tape: Tape
    name: str

    def _new(self, kind: str, *inputs: str, **attributes: Any) -> Symbol:
        return Symbol(self.tape, self.tape.op(kind, *inputs, **attributes))

    def _name_of(self, other: Symbol | float) -> str:
        return other.name if isinstance(other, Symbol) else self.tape.constant(other)

    def __matmul__(self, other: Symbol) -> Symbol:
        return self._new("MatMul", self.name, other.name)

    def __mul__(self, other: Symbol | float) -> Symbol:
        return self._new("Mul", self.name, self._name_of(other))

    __rmul__ = __mul__

    def __add__(self, other: Symbol | float) -> Symbol:
        return self._new("Add", self.name, self._name_of(other))

    def __sub__(self, other: Symbol | float) -> Symbol:
        return self._new("Sub", self.name, self._name_of(other))

    def __truediv__(self, other: Symbol | float) -> Symbol:
        return self._new("Div", self.name, self._name_of(other))

    def reshape(self, *sizes: int) -> Symbol:
        """See :func:`protocol.forms.reshaped`."""
        return self._new("Reshape", self.name, self.tape.axes(*sizes))

    def unsqueeze(self, *axes: int) -> Symbol:
        """See :func:`protocol.forms.widened`."""
        return self._new("Unsqueeze", self.name, self.tape.axes(*axes))

    def transpose(self, *axes: int) -> Symbol:
        """As numpy's."""
        return self._new("Transpose", self.name, perm=list(axes))

    @property
    def T(self) -> Symbol:  # noqa: N802  # numpy's name for it
        """A matrix with rows and columns exchanged."""
        return self.transpose(1, 0)
