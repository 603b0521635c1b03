"""Sums of squared errors on test rows, which tasks share whose answers are numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorScores(ABC):
    """``rows``, and the sums of their squared errors: ``error`` of such as are cut, ``loss`` as they are."""

    rows: int
    error: float
    loss: float
    figure: ClassVar[str]  # what the quality is called

    @property
    @abstractmethod
    def quality(self) -> float:
        """The figure itself."""

    @property
    def mean_error(self) -> float:
        """Of a row, cut."""
        return self.error / max(1, self.rows)

    @property
    def mean_loss(self) -> float:
        """Of a row."""
        return self.loss / max(1, self.rows)

    @property
    def figures(self) -> dict[str, float]:
        """The two that stand for all test rows."""
        return {self.figure: self.quality, "loss": self.mean_loss}

    @property
    def is_finite(self) -> bool:
        """Whether the answers were numbers."""
        return math.isfinite(self.loss)

    def by_label(self, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
        """None: an error is not of a label."""
        return {}

    def for_mix(self, labels: Sequence[str], mix: Mapping[str, int]) -> float | None:
        """None, for the same reason."""
        return None

    def to_list(self) -> list[list[float]]:
        """One row: ``[rows, error, loss]``."""
        return [[float(value) for value in astuple(self)]]
