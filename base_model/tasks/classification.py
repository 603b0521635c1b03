"""Cross-entropy of labels, in nats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto

from base_model.programs.tape import Tape

if TYPE_CHECKING:
    from torch import Tensor

TARGET, ELEMENT = "labels", TensorProto.INT64  # the index of each row's label
JUDGES = False


def loss(tape: Tape, outputs: str) -> str:
    """The sum over rows of -log softmax(outputs)[label]."""
    chosen = tape.op(
        "GatherElements",
        tape.op("LogSoftmax", outputs, axis=-1),
        tape.op("Unsqueeze", TARGET, tape.axes(1)),
        axis=1,
    )
    return tape.op("Neg", tape.op("ReduceSum", chosen, keepdims=0))


def torch_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The same in torch: outputs (rows, labels), targets (rows,) int64."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(outputs, targets, reduction="sum")
