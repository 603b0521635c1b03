"""How an adapter does on test rows, label by label: all other figures of a run are made of these counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.tasks.classification import Classification

Counts = npt.NDArray[np.int64]
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Per label, each (labels,): ``rows`` of the label, ``right`` of them, rows ``predicted`` as the label,
    and ``loss``, the sum of the rows' cross-entropy in nats (float64)."""

    rows: Counts
    right: Counts
    predicted: Counts
    loss: npt.NDArray[np.float64]

    @property
    def quality(self) -> float:
        """The accuracy."""
        return self.accuracy

    @property
    def accuracy(self) -> float:
        """Share of rows classified rightly; 0 for no rows."""
        return float(self.right.sum() / max(1, self.rows.sum()))

    @property
    def mean_loss(self) -> float:
        """Mean cross-entropy of a row in nats."""
        return float(self.loss.sum() / max(1, self.rows.sum()))

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the labels that have test rows: every label counts alike, rare ones too."""
        tested = self.rows > 0
        return float(self._f1()[tested].mean()) if tested.any() else 0.0

    @property
    def figures(self) -> dict[str, float]:
        """The three that stand for all test rows; loss in nats."""
        return {"accuracy": self.accuracy, "loss": self.mean_loss, "macro_f1": self.macro_f1}

    @property
    def is_finite(self) -> bool:
        """Whether the answers were numbers."""
        return bool(np.isfinite(self.loss).all())

    def _f1(self) -> npt.NDArray[np.float64]:
        return 2 * self.right / np.maximum(self.rows + self.predicted, 1)

    def by_label(self, labels: Sequence[str]) -> dict[str, Json]:
        """Of labels with test rows: ``rows``, ``recall``, ``precision`` (or None), ``f1`` and ``loss``."""
        return {
            label: {
                "rows": int(rows),
                "recall": float(right / rows),
                "precision": float(right / predicted) if predicted else None,
                "f1": float(f1),
                "loss": float(loss / rows),
            }
            for label, rows, right, predicted, f1, loss in zip(
                labels, self.rows, self.right, self.predicted, self._f1(), self.loss, strict=True
            )
            if rows
        }

    def for_mix(self, labels: Sequence[str], mix: Mapping[str, int]) -> float | None:
        """The accuracy that rows with this mix of labels can expect; None when no such label has test rows.

        Each label's share of right test rows, weighed by the label's count in ``mix``. (docs/adr/0036)
        """
        weights = np.array([mix.get(label, 0) for label in labels], np.float64) * (self.rows > 0)
        if not weights.any():
            return None
        return float(weights @ (self.right / np.maximum(self.rows, 1)) / weights.sum())

    def to_list(self) -> list[list[float]]:
        """Per label ``[rows, right, predicted, loss]``."""
        columns = (self.rows, self.right, self.predicted, self.loss)
        return [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    @classmethod
    def from_list(cls, rows: Sequence[Sequence[float]]) -> Scores:
        """The inverse of :meth:`to_list`."""
        table = np.asarray(rows, np.float64).reshape(-1, 4)
        counts = table[:, :3].astype(np.int64)
        return cls(rows=counts[:, 0], right=counts[:, 1], predicted=counts[:, 2], loss=table[:, 3])


scores_from = Scores.from_list


def labels(task: Classification) -> list[str]:
    """Those that figures are broken down by."""
    return task.labels


def strata(targets: Sequence[str]) -> list[str]:
    """What rows are told apart by where they are dealt out: their labels."""
    return list(targets)


def score(outputs: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> Scores:
    """Scores of logits (rows, labels) against the index of each row's label (rows,)."""
    logits, labels = outputs, targets
    count, exact = logits.shape[1], logits.astype(np.float64)
    shifted = exact - exact.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    guesses = logits.argmax(axis=1)

    def per_label(index: npt.NDArray[np.int64]) -> Counts:
        return np.bincount(index, minlength=count).astype(np.int64)

    return Scores(
        rows=per_label(labels),
        right=per_label(labels[guesses == labels]),
        predicted=per_label(guesses),
        loss=np.bincount(labels, weights=losses, minlength=count).astype(np.float64),
    )
