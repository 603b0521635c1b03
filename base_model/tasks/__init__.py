"""What a base's programs do otherwise for each kind of task: one module per kind, by its name in the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from base_model.programs.tape import Tape
from base_model.tasks import causal_lm, classification, denoising, regression

if TYPE_CHECKING:
    from torch import Tensor


class ProgramTask(Protocol):
    """A module of this package."""

    TARGET: str  # the input, beside the rows, with what is to be answered
    ELEMENT: int  # its ONNX element type
    JUDGES: bool  # whether the program that answers takes it too, and gives losses


class OutputTask(ProgramTask, Protocol):
    """One whose answers are a head's; targets are (rows,)."""

    def loss(self, tape: Tape, outputs: str) -> str:
        """A scalar: the sum over rows of their loss, in a program."""
        ...

    def torch_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The same in torch."""
        ...


OUTPUT_TASKS: dict[str, OutputTask] = {
    "classification": classification,
    "regression": regression,
    # a loss of labels, whatever they are of
    "image-classification": classification,
    "audio-classification": classification,
    "document-classification": classification,
}
TASKS: dict[str, ProgramTask] = {
    **OUTPUT_TASKS,
    "causal-lm": causal_lm,
    "seq2seq-lm": causal_lm,
    "image-generation": denoising,
}
