"""A base's own linears within a program: what a method's forms ask of them, as symbols. (P-2.5, P-11)"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, numpy_helper

from base_model.programs.tape import DETACHED, MICROSOFT, Symbol, Tape
from protocol.frozen_linears import FrozenLinears, StoredLinears
from protocol.manifest import BaseManifest

LEAST = 1e-6  # of a row's squared length: in float32 nothing is left of one that is shorter


class LinearsOfProgram(FrozenLinears):
    """Of the answering graph that ``tape`` writes to; no matrix of codes is expanded.

    A row w that becomes ``w + b A`` has the squared length ``|w|^2 + 2 b (A w) + b (A A^T) b^T``, and
    ``A W^T`` is one product of the codes with r rows.
    """

    def __init__(self, stored: StoredLinears, manifest: BaseManifest, tape: Tape) -> None:
        self._stored, self._manifest, self._tape = stored, manifest, tape
        self._linears = {linear.path: linear for linear in manifest.linears}
        self._constant = Tape(tape.graph, DETACHED)  # what it writes has no gradient

    def lengths(self, path: str) -> Symbol:
        """See :class:`FrozenLinears`."""
        return Symbol(self._tape, self._tape.constant(self._stored.lengths(path)))

    def growth(self, path: str, down: Symbol, up: Symbol) -> Symbol:
        """See :class:`FrozenLinears`."""
        tape = self._constant
        first, second = (Symbol(tape, symbol.name) for symbol in (down, up))
        along = Symbol(tape, self._product(path, first.name)).T
        change = (along + along + second @ (first @ first.T)) * second
        total = tape.op("ReduceSum", change.name, tape.axes(1), keepdims=0)
        squares = np.square(self._stored.lengths(path), dtype=np.float64)
        share = Symbol(tape, total) * Symbol(tape, tape.constant(1 / squares)) + 1.0
        least = tape.op("Max", share.name, tape.constant(LEAST))
        return Symbol(self._tape, tape.op("Sqrt", least))

    def bias(self, path: str) -> Symbol | None:
        """See :class:`FrozenLinears`."""
        value = self._stored.bias(path)
        return None if value is None else Symbol(self._tape, self._tape.constant(value))

    def _product(self, path: str, rows: str) -> str:
        """``rows`` (r, in) by the frozen weight: (r, out)."""
        manifest, linear, tape = self._manifest, self._linears[path], self._constant
        if manifest.bits in (4, 8):
            names = f"{path}.qweight", f"{path}.scales"
            sizes = {"K": linear.in_features, "N": linear.out_features, "bits": manifest.bits}
            sizes |= {"block_size": manifest.block, "accuracy_level": 1}  # 1: rows in float32
            return tape.op("MatMulNBits", rows, *names, domain=MICROSOFT, **sizes)
        weight = f"{path}.weight"  # by this name it stays in the base's own file
        if not any(item.name == weight for item in tape.graph.initializer):
            stored = numpy_helper.from_array(self._stored.stored_weight(path), weight)
            tape.graph.initializer.append(stored)
        if manifest.bits == 16:
            weight = tape.op("Cast", weight, to=TensorProto.FLOAT)
        return tape.op("Gemm", rows, weight, transB=1)
