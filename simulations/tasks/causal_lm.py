"""How well an adapter foresees the tokens of test rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from client.tasks.causal_lm import score as client_score
from protocol.tasks.base import MOST_LOSS


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """``rows``, their ``tokens`` that count, ``right`` of them the likeliest, ``loss`` of all in nats."""

    rows: int
    tokens: int
    right: int
    loss: float

    @property
    def quality(self) -> float:
        """The perplexity."""
        return math.exp(min(self.mean_loss, MOST_LOSS))

    @property
    def mean_loss(self) -> float:
        """Of a token, in nats."""
        return self.loss / max(1, self.tokens)

    @property
    def figures(self) -> dict[str, float]:
        """The three that stand for all test rows."""
        share = self.right / max(1, self.tokens)
        return {"perplexity": self.quality, "loss": self.mean_loss, "token_accuracy": share}

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
        """One row: ``[rows, tokens, right, loss]``."""
        return [[float(value) for value in astuple(self)]]


def scores_from(rows: Sequence[Sequence[float]]) -> Scores:
    """The inverse of :meth:`Scores.to_list`."""
    ((count, tokens, right, loss),) = rows
    return Scores(rows=int(count), tokens=int(tokens), right=int(right), loss=loss)


def labels(task: object) -> list[str]:
    """There are none."""
    return []


def strata(targets: Sequence[str]) -> list[str]:
    """All rows are of one."""
    return [""] * len(targets)


def score(outputs: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> Scores:
    """Of what a program gives for each row, (rows, 3)."""
    known = client_score(outputs, targets)
    return Scores(rows=known.examples, tokens=known.tokens, right=known.right, loss=known.loss_sum)
