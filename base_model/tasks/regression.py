"""Squared distance of shares of a range."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto

from base_model.programs.tape import Tape

if TYPE_CHECKING:
    from torch import Tensor

TARGET, ELEMENT = "targets", TensorProto.FLOAT  # each row's share of the range
JUDGES = False


def loss(tape: Tape, outputs: str) -> str:
    """The sum over rows of the square."""
    distance = tape.op("Sub", outputs, tape.op("Unsqueeze", TARGET, tape.axes(1)))
    return tape.op("ReduceSum", tape.op("Mul", distance, distance), keepdims=0)


def torch_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The same in torch: outputs (rows, 1), targets (rows,) float32."""
    from torch.nn.functional import mse_loss

    return mse_loss(outputs.squeeze(1), targets, reduction="sum")
