"""What a base's programs do otherwise for each kind of task: one module per kind, by its name in the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from base_model.programs.tape import Tape
from base_model.tasks import classification, regression

if TYPE_CHECKING:
    from torch import Tensor


class ProgramTask(Protocol):
    """A module of this package."""

    TARGET: str  # the input, beside the rows, with what each row is to answer
    ELEMENT: int  # its ONNX element type; it is (rows,)

    def loss(self, tape: Tape, outputs: str) -> str:
        """A scalar: the sum over rows of their loss, in a program."""
        ...

    def torch_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The same in torch."""
        ...


TASKS: dict[str, ProgramTask] = {
    "classification": classification,
    "regression": regression,
}
