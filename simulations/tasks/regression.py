"""How near an adapter's numbers are on test rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from client.tasks.regression import score as client_score

STRATA = 10  # parts of the values, as many rows in each


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """``rows``, and the sums of their squares of distance, in ranges: ``error`` of answers that are cut to
    the range, ``loss`` of the outputs as they are."""

    rows: int
    error: float
    loss: float

    @property
    def quality(self) -> float:
        """The root of the mean square, in ranges."""
        return math.sqrt(self.error / max(1, self.rows))

    @property
    def mean_loss(self) -> float:
        """Of a row."""
        return self.loss / max(1, self.rows)

    @property
    def figures(self) -> dict[str, float]:
        """The two that stand for all test rows."""
        return {"nrmse": self.quality, "loss": self.mean_loss}

    @property
    def is_finite(self) -> bool:
        """Whether the answers were numbers."""
        return math.isfinite(self.loss)

    def by_label(self, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
        """There are no labels."""
        return {}

    def for_mix(self, labels: Sequence[str], mix: Mapping[str, int]) -> float | None:
        """There are no labels."""
        return None

    def to_list(self) -> list[list[float]]:
        """One row: ``[rows, error, loss]``."""
        return [[float(value) for value in astuple(self)]]


def scores_from(rows: Sequence[Sequence[float]]) -> Scores:
    """The inverse of :meth:`Scores.to_list`."""
    ((count, error, loss),) = rows
    return Scores(rows=int(count), error=error, loss=loss)


def labels(task: object) -> list[str]:
    """There are none."""
    return []


def strata(targets: Sequence[float]) -> list[str]:
    """Tenths of the rows by their value, from the least; equal values are in one."""
    ordered = sorted(targets)
    edges = [ordered[max(0, len(ordered) * part // STRATA - 1)] for part in range(1, STRATA)]
    return [f"{np.searchsorted(edges, value):02d}" for value in targets]


def score(outputs: npt.NDArray[np.float32], targets: npt.NDArray[np.float32]) -> Scores:
    """Of outputs (rows, 1) against shares of the range (rows,)."""
    found = client_score(outputs, targets)
    return Scores(rows=found.examples, error=found.error, loss=found.loss_sum)
