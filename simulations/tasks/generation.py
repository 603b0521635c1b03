"""How well a model finds the noise on test images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from client.tasks.generation import score as client_score
from simulations.tasks.errors import ErrorScores


class Scores(ErrorScores):
    """The mean of the squared error of the noise, over rows."""

    figure: ClassVar[str] = "noise_error"

    @property
    def quality(self) -> float:
        """The mean over rows."""
        return self.mean_error


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
