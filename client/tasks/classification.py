"""Labels by their index, cross-entropy, and rows classified rightly."""

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
from protocol.tasks.classification import Labelled

TARGETS = np.int64


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Rows classified rightly, rows, and the sum of their cross-entropy in nats."""

    correct: int
    examples: int
    loss_sum: float

    @property
    def metrics(self) -> dict[str, float]:
        """``eval_examples`` and ``eval_correct``."""
        return {"eval_examples": float(self.examples), "eval_correct": float(self.correct)}

    @property
    def accuracy(self) -> float:
        """Share of rows classified rightly; 0 for no rows."""
        return self.correct / self.examples if self.examples else 0.0


def targets(table: Table, task: Labelled) -> list[int]:
    """The index in ``task.labels`` of each row's label."""
    index = {label: at for at, label in enumerate(task.labels)}
    return [index[label] for label in table.targets]


def encode(rows: Rows, recipe: Recipe, base: OpenedBase) -> Encoded:
    """Texts or pages with special tokens, cut to the plan's length."""
    return encode_outputs(rows, recipe, base, TARGETS)


def score(outputs: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> Score:
    """Of logits (rows, labels) against the index of each row's label (rows,)."""
    if not len(targets):
        return Score(correct=0, examples=0, loss_sum=0.0)
    logits = outputs.astype(np.float64)
    largest = logits.max(-1, keepdims=True)
    normal = np.log(np.exp(logits - largest).sum(-1)) + largest[:, 0]
    chosen = np.take_along_axis(logits, targets[:, None], -1)[:, 0]
    return Score(
        correct=int((logits.argmax(-1) == targets).sum()),
        examples=len(targets),
        loss_sum=float((normal - chosen).sum()),
    )
