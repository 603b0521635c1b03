"""What a device does otherwise for each kind of task: one module per kind, by its name in releases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_runtime.answer_options import AnswerOptions
from edge_runtime.blends.note import AnyNote
from edge_runtime.tasks import classification, regression
from protocol.calibration import Calibration
from protocol.errors import ArtefactError
from protocol.misspelling import nearest


class Prediction(Protocol):
    """The answer to one text."""

    @property
    def answer(self) -> str | float:
        """The label or the value."""
        ...

    @property
    def is_finite(self) -> bool:
        """Whether it is an answer at all."""
        ...

    def form(self, options: AnswerOptions) -> dict[str, Any]:
        """As JSON has it."""
        ...

    def cells(self, options: AnswerOptions) -> dict[str, str]:
        """As a table has it, by column."""
        ...


class EdgeTask(Protocol):
    """A module of this package."""

    HAS_LABELS: bool  # whether answers are chosen from some

    def verify_options(self, options: AnswerOptions) -> None:
        """Raises DataError for a wish that answers of this kind cannot meet."""
        ...

    def of_release(
        self, outputs: npt.NDArray[np.float32], note: AnyNote, options: AnswerOptions
    ) -> Sequence[Prediction]:
        """Answers of a release's adapter to rows of ``outputs`` (rows, outputs)."""
        ...

    def measured(
        self, outputs: npt.NDArray[np.float32], targets: npt.NDArray[Any]
    ) -> tuple[float, Calibration | None]:
        """The task's quality on rows with known ``targets`` (rows,), and what their answers calibrate."""
        ...

    def is_right(self, answer: Any, golden: Any, within: float) -> bool:
        """Whether an answer is the one that a device's own row must get."""
        ...


TASKS: dict[str, EdgeTask] = {
    "classification": classification,
    "regression": regression,
    # answered alike
    "image-classification": classification,
    "audio-classification": classification,
    "document-classification": classification,
}


def task_named(kind: str) -> EdgeTask:
    """The module of a kind. Raises ArtefactError for one that this device does not know."""
    if kind not in TASKS:
        near = nearest(kind, TASKS)
        raise ArtefactError(
            f"the release answers task `{kind[:60]}`, which is not known here"
            + (f"; the nearest is `{near}`" if near else ""),
            "install the version of fedge that the release was made with",
        )
    return TASKS[kind]
