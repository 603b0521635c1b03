"""How near an adapter's numbers are on test rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from client.tasks.regression import score as client_score
from simulations.tasks.errors import ErrorScores

STRATA = 10  # parts of the values, as many rows in each


class Scores(ErrorScores):
    """Of squares of distance, in ranges; those that are cut are of answers within the range."""

    figure: ClassVar[str] = "nrmse"

    @property
    def quality(self) -> float:
        """The root of the mean square, in ranges."""
        return math.sqrt(self.mean_error)


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
    of_client = client_score(outputs, targets)
    return Scores(rows=of_client.examples, error=of_client.error, loss=of_client.loss_sum)
