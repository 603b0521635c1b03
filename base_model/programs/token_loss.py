"""Cross-entropy of tokens under a frozen output layer, and its gradient by the layer's input.

The layer is not trained, so its weight W is a constant: logits = h W^T, loss = sum of logsumexp(logits) -
logits[target] over the counted positions, dloss/dh = softmax(logits) W - W[target]. Rows of W are taken a
slice at a time, once for the logsumexp, once for the gradient: of logits (positions, vocabulary) only a
slice is ever there, and of W too. Positions that are not counted are dropped before the first product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from base_model.programs.tape import MICROSOFT, Tape

# (rows, tokens): the next token, below 0 where none counts
TARGET, ELEMENT = "targets", TensorProto.INT64
SLICE = 2**20  # elements of the weight that are expanded at a time


@dataclass(frozen=True, kw_only=True)
class OutputLayer:
    """The frozen weight (vocabulary, width): a float tensor, or codes with their scales; names in the graph.

    ``codes`` uint8 (vocabulary, width * bits / 8) and ``scales`` (vocabulary, blocks) in blocks of ``block``.
    """

    vocabulary: int
    width: int
    weight: str = ""
    codes: str = ""
    scales: str = ""
    bits: int = 8
    block: int = 32

    @property
    def slice_rows(self) -> int:
        """Rows of the weight in a slice."""
        return max(1, SLICE // self.width)

    def starts(self) -> range:
        """The first row of every slice."""
        return range(0, self.vocabulary, self.slice_rows)

    def rows(self, tape: Tape, index: str) -> str:
        """Those at ``index`` (n,) int64, as floats (n, width)."""
        if self.weight:
            return tape.op("Gather", self.weight, index, axis=0)
        return tape.op(
            "GatherBlockQuantized",
            *(self.codes, index, self.scales),
            domain=MICROSOFT,
            bits=self.bits,
            block_size=self.block,
            gather_axis=0,
            quantize_axis=1,
        )


def token_loss(tape: Tape, hidden: str, layer: OutputLayer) -> tuple[str, str]:
    """(loss, gradient): the sum over counted positions in nats, and its gradient by ``hidden``.

    ``hidden`` (rows, tokens, width) float32; the graph has the input :data:`TARGET`.
    """
    flat = tape.op("Reshape", TARGET, tape.axes(-1))
    counted = tape.op("GreaterOrEqual", flat, tape.constant(0, np.int64))
    places = tape.op("Transpose", tape.op("NonZero", counted), perm=[1, 0])  # (n, 1)
    index = tape.op("Squeeze", places, tape.axes(1))
    every = tape.op("Reshape", hidden, tape.axes(-1, layer.width))
    chosen = tape.op("Gather", every, index, axis=0)  # (n, width)
    wanted = layer.rows(tape, tape.op("Gather", flat, index, axis=0))
    total = logsumexp(tape, chosen, layer)
    along = tape.op("ReduceSum", tape.op("Mul", chosen, wanted), tape.axes(1), keepdims=1)
    loss = tape.op("ReduceSum", tape.op("Sub", total, along), keepdims=0)
    back = tape.op("Neg", wanted)
    for start in layer.starts():
        weight, logits = _slice(tape, chosen, layer, start, after=back)
        share = tape.op("Exp", tape.op("Sub", logits, total))
        back = tape.op("Gemm", share, weight, back)
    zeros = tape.op("Mul", every, tape.constant(0.0))
    spread = tape.op("ScatterND", zeros, places, back)
    return loss, tape.op("Reshape", spread, tape.op("Shape", hidden))


def logsumexp(tape: Tape, chosen: str, layer: OutputLayer) -> str:
    """(n, 1) of logits of ``chosen`` (n, width), over the whole vocabulary."""
    parts, after = [], chosen
    for start in layer.starts():
        _, logits = _slice(tape, chosen, layer, start, after=after)
        after = tape.op("ReduceLogSumExp", logits, tape.axes(1), keepdims=1)
        parts.append(after)
    return tape.op("ReduceLogSumExp", tape.op("Concat", *parts, axis=1), tape.axes(1), keepdims=1)


def _slice(
    tape: Tape, chosen: str, layer: OutputLayer, start: int, *, after: str
) -> tuple[str, str]:
    """(rows of the weight from ``start`` on, their logits).

    They are not expanded before ``after`` is there, whatever order a runtime takes: where they begin is
    computed from its size, times 0. So one slice is there at a time.
    """
    nothing = tape.op("Mul", tape.op("Size", after), tape.constant(0, np.int64))
    first = tape.op("Add", nothing, tape.constant(start, np.int64))
    stop = min(start + layer.slice_rows, layer.vocabulary)
    index = tape.op("Range", first, tape.constant(stop, np.int64), tape.constant(1, np.int64))
    weight = layer.rows(tape, index)
    return weight, tape.op("Gemm", chosen, weight, transB=1)
