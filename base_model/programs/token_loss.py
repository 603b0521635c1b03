"""Cross-entropy of tokens under a frozen output layer, and its gradient by the layer's input.

The layer is not trained, so its weight W is a constant: logits = h W^T, loss = sum of logsumexp(logits) -
logits[target] over the counted positions, dloss/dh = softmax(logits) W - W[target]. Rows of W are taken a
slice at a time, and each slice once: sums of exp(logits) and of exp(logits) W run along, relative to the
largest logit so far. Of logits (positions, vocabulary) only a slice is ever there, and of W too. Positions
that are not counted are dropped before the first product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from base_model.programs.footprint import SLICE
from base_model.programs.tape import MICROSOFT, Tape

# (rows, tokens): the next token, below 0 where none counts
TARGET, ELEMENT = "next_tokens", TensorProto.INT64
FIGURES = 3  # of a row
TIE = 1e-5  # of logits


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


@dataclass(frozen=True, kw_only=True)
class Counted:
    """The n counted positions of a batch: ``places`` (n, 1) among all, and their ``hidden`` (n, width).

    ``weights`` (n, width): the layer's rows of the tokens that follow; ``along`` (n, 1): their logits.
    """

    places: str
    hidden: str
    weights: str
    along: str


def _counted(tape: Tape, hidden: str, layer: OutputLayer) -> Counted:
    flat = tape.op("Reshape", TARGET, tape.axes(-1))
    counted = tape.op("GreaterOrEqual", flat, tape.constant(0, np.int64))
    places = tape.op("Transpose", tape.op("NonZero", counted), perm=[1, 0])  # (n, 1)
    index = tape.op("Squeeze", places, tape.axes(1))
    chosen = tape.op("Gather", _flat(tape, hidden, layer), index, axis=0)
    weights = layer.rows(tape, tape.op("Gather", flat, index, axis=0))
    along = tape.op("ReduceSum", tape.op("Mul", chosen, weights), tape.axes(1), keepdims=1)
    return Counted(places=places, hidden=chosen, weights=weights, along=along)


def _flat(tape: Tape, hidden: str, layer: OutputLayer) -> str:
    return tape.op("Reshape", hidden, tape.axes(-1, layer.width))


def token_loss(tape: Tape, hidden: str, layer: OutputLayer) -> tuple[str, str]:
    """(loss, gradient): the sum over counted positions in nats, and its gradient by ``hidden``.

    ``hidden`` (rows, tokens, width) float32; the graph has the input :data:`TARGET`.
    """
    counted = _counted(tape, hidden, layer)
    read = _read(tape, counted.hidden, layer, mixing=True)
    loss = tape.op("ReduceSum", tape.op("Sub", read.logsumexp(tape), counted.along), keepdims=0)
    back = tape.op("Sub", tape.op("Div", read.mixed, read.total), counted.weights)
    zeros = tape.op("Mul", _flat(tape, hidden, layer), tape.constant(0.0))
    spread = tape.op("ScatterND", zeros, counted.places, back)
    return loss, tape.op("Reshape", spread, tape.op("Shape", hidden))


def token_scores(tape: Tape, hidden: str, layer: OutputLayer) -> str:
    """(rows, 3) float32: of each row the loss in nats, its counted tokens, and how many had the top logit.

    A token that shares it with another counts.
    """
    counted = _counted(tape, hidden, layer)
    read = _read(tape, counted.hidden, layer)
    losses = tape.op("Sub", read.logsumexp(tape), counted.along)
    # products of one row and of many round differently
    near = tape.op("Sub", read.top, tape.constant(TIE))
    right = tape.op("Cast", tape.op("GreaterOrEqual", counted.along, near), to=TensorProto.FLOAT)
    ones = tape.op("Add", tape.op("Mul", losses, tape.constant(0.0)), tape.constant(1.0))
    figures = tape.op("Concat", losses, ones, right, axis=1)
    size = tape.op(
        "Concat",
        tape.op("Reshape", tape.op("Size", TARGET), tape.axes(1)),
        tape.axes(FIGURES),
        axis=0,
    )
    zeros = tape.op("Expand", tape.constant(0.0), size)
    spread = tape.op("ScatterND", zeros, counted.places, figures)
    shape = tape.op("Concat", tape.op("Shape", TARGET), tape.axes(FIGURES), axis=0)
    by_row = tape.op("Reshape", spread, shape)
    return tape.op("ReduceSum", by_row, tape.axes(1), keepdims=0)


@dataclass(frozen=True, kw_only=True)
class Read:
    """What the slices read so far come to, of each of n positions: names in the graph.

    ``top`` (n, 1): the largest logit; ``total`` (n, 1): sum of exp(logits - top); ``mixed`` (n, width): the
    same sum over rows of the weight, each times its exp, or nothing.
    """

    top: str
    total: str
    mixed: str = ""

    def logsumexp(self, tape: Tape) -> str:
        """Of all logits, (n, 1)."""
        return tape.op("Add", tape.op("Log", self.total), self.top)

    def followed(self, tape: Tape, logits: str, weight: str) -> Read:
        """With one more slice. A larger top than before shrinks what is there. (arXiv 1805.02867)"""
        top = tape.op("Max", self.top, _largest(tape, logits))
        shrink = tape.op("Exp", tape.op("Sub", self.top, top))
        shares, total = _shares(tape, logits, top)
        mixed = ""
        if self.mixed:
            mixed = tape.op("Gemm", shares, weight, tape.op("Mul", self.mixed, shrink))
        total = tape.op("Add", tape.op("Mul", self.total, shrink), total)
        return Read(top=top, total=total, mixed=mixed)


def _largest(tape: Tape, logits: str) -> str:
    return tape.op("ReduceMax", logits, tape.axes(1), keepdims=1)


def _shares(tape: Tape, logits: str, top: str) -> tuple[str, str]:
    """(exp(logits - top), their sums)."""
    shares = tape.op("Exp", tape.op("Sub", logits, top))
    return shares, tape.op("ReduceSum", shares, tape.axes(1), keepdims=1)


def _read(tape: Tape, chosen: str, layer: OutputLayer, *, mixing: bool = False) -> Read:
    """All slices in one pass. ``mixing``: sum the weight's rows too, which gives the loss's gradient."""
    read, after = None, chosen
    for start in layer.starts():
        weight, logits = _slice(tape, chosen, layer, start, after=after)
        if read is None:
            top = _largest(tape, logits)
            shares, total = _shares(tape, logits, top)
            mixed = tape.op("Gemm", shares, weight) if mixing else ""
            read = Read(top=top, total=total, mixed=mixed)
        else:
            read = read.followed(tape, logits, weight)
        after = read.mixed or read.total
    assert read is not None  # a vocabulary has tokens
    return read


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
