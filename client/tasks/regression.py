"""Values as shares of their range, and the squared distance of answers, as they are and cut to the range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from client.batches import Encoded
from client.data import Rows
from client.opened_base import OpenedBase
from client.tasks.outputs import encode_outputs
from protocol.recipe import Recipe
from protocol.rows.read import Table
from protocol.tasks.regression import Regression

TARGETS = np.float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Rows, the sum of their loss, and the same of answers within the range; both in squares of the range."""

    examples: int
    loss_sum: float
    error: float

    @property
    def metrics(self) -> dict[str, float]:
        """``eval_examples`` and ``eval_error``."""
        return {"eval_examples": float(self.examples), "eval_error": self.error}


def targets(table: Table, task: Regression) -> list[float]:
    """Each row's value as a share of the range."""
    return [(value - task.low) / (task.high - task.low) for value in table.targets]


def encode(rows: Rows, recipe: Recipe, base: OpenedBase) -> Encoded:
    """Texts with special tokens, cut to the plan's length."""
    return encode_outputs(rows, recipe, base, TARGETS)


def score(outputs: npt.NDArray[np.float32], targets: npt.NDArray[np.float32]) -> Score:
    """Of outputs (rows, 1) against shares (rows,)."""
    answers = outputs.reshape(-1).astype(np.float64)
    distance = answers - targets
    within = np.clip(answers, 0.0, 1.0) - targets
    return Score(
        examples=len(targets),
        loss_sum=float((distance**2).sum()),
        error=float((within**2).sum()),
    )
