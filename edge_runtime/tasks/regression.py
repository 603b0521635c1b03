"""A number within the range that the adapter was trained for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.answer_options import LIKELIEST, AnswerOptions
from edge_runtime.blends.note import AnyNote
from protocol.errors import DataError

HAS_LABELS = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """The answer to a text, in the units of the rows."""

    value: float

    @property
    def answer(self) -> float:
        """The value."""
        return self.value

    @property
    def is_finite(self) -> bool:
        """Whether it is an answer at all."""
        return math.isfinite(self.value)

    def form(self, options: AnswerOptions) -> dict[str, Any]:
        """As JSON has it."""
        return {"value": self.value}

    def cells(self, options: AnswerOptions) -> dict[str, str]:
        """The value."""
        return {"value": f"{self.value:.4g}"}


def verify_options(options: AnswerOptions) -> None:
    """There are no labels to choose from, and no probabilities. Raises DataError."""
    if options != LIKELIEST:
        raise DataError(
            "the release answers with numbers: it has no labels of which some could be asked for or rejected",
            "leave out `top` and `reject_below`",
        )


def of_release(
    outputs: npt.NDArray[np.float32], note: AnyNote, options: AnswerOptions
) -> list[Value]:
    """Answers of a release's adapter; what lies outside the range is cut to it."""
    assert note.range is not None
    low, high = note.range
    shares = np.clip(outputs.reshape(-1).astype(np.float64), 0.0, 1.0)
    return [Value(value=low + (high - low) * float(share)) for share in shares]


def measured(outputs: npt.NDArray[np.float32], targets: npt.NDArray[Any]) -> tuple[float, None]:
    """Root of the mean square of the distance between answers and ``targets``, in ranges; no calibration."""
    within = np.clip(outputs.reshape(-1).astype(np.float64), 0.0, 1.0)
    return float(np.sqrt(((within - targets) ** 2).mean())), None


def is_right(answer: Value, golden: float, within: float) -> bool:
    """Whether an answer lies near enough."""
    return abs(answer.value - golden) <= within
