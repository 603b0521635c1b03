"""How well a model finds the noise on test images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from client.tasks.generation import score as client_score


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """``rows``, and the sum of their mean squares: ``error`` of such as are cut, ``loss`` as they are."""

    rows: int
    error: float
    loss: float

    @property
    def quality(self) -> float:
        """The mean over rows."""
        return self.error / max(1, self.rows)

    @property
    def mean_loss(self) -> float:
        """Of a row."""
        return self.loss / max(1, self.rows)

    @property
    def figures(self) -> dict[str, float]:
        """The two that stand for all test rows."""
        return {"noise_error": self.quality, "loss": self.mean_loss}

    @property
    def is_finite(self) -> bool:
        """Whether the answers were numbers."""
        return math.isfinite(self.loss)

    def by_label(self, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
        """None: an error is of a step and a noise more than of a label."""
        return {}

    def for_mix(self, labels: Sequence[str], mix: Mapping[str, int]) -> float | None:
        """None, for the same reason."""
        return None

    def to_list(self) -> list[list[float]]:
        """One row: ``[rows, error, loss]``."""
        return [[float(value) for value in astuple(self)]]


def scores_from(rows: Sequence[Sequence[float]]) -> Scores:
    """The inverse of :meth:`Scores.to_list`."""
    ((count, error, loss),) = rows
    return Scores(rows=int(count), error=error, loss=loss)


def labels(task: object) -> list[str]:
    """Figures are not broken down by them."""
    return []


def strata(targets: Sequence[str]) -> list[str]:
    """The labels."""
    return list(targets)


def score(outputs: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> Scores:
    """Of what a program gives, against the class of each row (rows,)."""
    of_client = client_score(outputs, targets)
    return Scores(rows=of_client.examples, error=of_client.error, loss=of_client.loss_sum)
