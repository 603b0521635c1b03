"""Squared distance of the noise, a mean over an image's values. (:mod:`base_model.programs.denoising`)"""

from __future__ import annotations

from onnx import TensorProto

from base_model.programs.tape import Tape

TARGET, ELEMENT = "target_noise", TensorProto.FLOAT  # (rows, channels, height, width)
JUDGES = (
    True  # a noise for each row would be handed out and compared, where one number is asked for
)


def errors(tape: Tape, noise: str) -> str:
    """(rows, 1): of each image the mean square of ``noise`` less the target."""
    distance = tape.op("Sub", noise, TARGET)
    square = tape.op("Mul", distance, distance)
    means = tape.op("ReduceMean", square, tape.axes(1, 2, 3), keepdims=0)
    return tape.op("Unsqueeze", means, tape.axes(1))


def loss(tape: Tape, noise: str, *, values: int) -> str:
    """The sum over rows of the same; ``values``: numbers of an image."""
    distance = tape.op("Sub", noise, TARGET)
    square = tape.op("Mul", distance, distance)
    total = tape.op("ReduceSum", square, keepdims=0)
    return tape.op("Mul", total, tape.constant(1.0 / values))
