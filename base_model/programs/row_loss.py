"""The loss of each row of texts under a frozen output layer: what a model is measured by. (P-11)

The sums are those of ``token_loss``, slice by slice, without a gradient.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from base_model.programs.tape import Tape
from base_model.programs.token_loss import TARGET, OutputLayer, logsumexp

ROW_LOSS = (
    "row_loss"  # (rows, 2) float32: the sum over a row's counted tokens in nats, and their number
)


def row_loss(tape: Tape, hidden: str, layer: OutputLayer) -> str:
    """:data:`ROW_LOSS` of ``hidden`` (rows * tokens, width) float32; :data:`TARGET` is an input."""
    flat = tape.op("Reshape", TARGET, tape.axes(-1))
    counted = tape.op("GreaterOrEqual", flat, tape.constant(0, np.int64))
    places = tape.op("Transpose", tape.op("NonZero", counted), perm=[1, 0])  # (n, 1)
    index = tape.op("Squeeze", places, tape.axes(1))
    every = tape.op("Reshape", hidden, tape.axes(-1, layer.width))
    chosen = tape.op("Gather", every, index, axis=0)  # (n, width)
    wanted = layer.rows(tape, tape.op("Gather", flat, index, axis=0))
    along = tape.op("ReduceSum", tape.op("Mul", chosen, wanted), tape.axes(1), keepdims=1)
    apart = tape.op("Sub", logsumexp(tape, chosen, layer), along)
    losses = tape.op("Reshape", apart, tape.axes(-1))
    ones = tape.op("Cast", counted, to=TensorProto.FLOAT)
    zeros = tape.op("Mul", ones, tape.constant(0.0))
    spread = tape.op("ScatterND", zeros, places, losses)
    columns = [_of_rows(tape, value) for value in (spread, ones)]
    return tape.op("Concat", *columns, axis=1)


def _of_rows(tape: Tape, flat: str) -> str:
    """(rows, 1): sums of (rows * tokens,)."""
    texts = tape.op("Reshape", flat, tape.op("Shape", TARGET))
    return tape.op("ReduceSum", texts, tape.axes(1), keepdims=1)
