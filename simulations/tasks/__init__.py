"""What a simulation does otherwise for each kind of task: one module per kind, by its name in the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from simulations.tasks import causal_lm, classification, generation, regression


class Scores(Protocol):
    """How an adapter does on test rows."""

    @property
    def quality(self) -> float:
        """The figure that the task is judged by."""
        ...

    @property
    def mean_loss(self) -> float:
        """Of a row."""
        ...

    @property
    def figures(self) -> dict[str, float]:
        """By name what stands for all test rows."""
        ...

    @property
    def is_finite(self) -> bool:
        """Whether the answers were numbers."""
        ...

    def by_label(self, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Figures of each label; none where there are no labels."""
        ...

    def for_mix(self, labels: Sequence[str], mix: Mapping[str, int]) -> float | None:
        """The quality that rows with this mix of labels can expect, if that can be said."""
        ...

    def to_list(self) -> list[list[float]]:
        """For a file."""
        ...


class SimulatedTask(Protocol):
    """A module of this package."""

    def labels(self, task: Any) -> list[str]:
        """Those that figures are broken down by."""
        ...

    def strata(self, targets: Sequence[Any]) -> list[str]:
        """What rows are told apart by where they are dealt out."""
        ...

    def score(self, outputs: npt.NDArray[np.float32], targets: npt.NDArray[Any]) -> Scores:
        """Of ``outputs`` (rows, outputs) against the targets of the encoded rows."""
        ...

    def scores_from(self, rows: Sequence[Sequence[float]]) -> Scores:
        """The inverse of ``Scores.to_list``."""
        ...


TASKS: dict[str, SimulatedTask] = {
    "classification": classification,
    "regression": regression,
    # judged alike
    "image-classification": classification,
    "audio-classification": classification,
    "document-classification": classification,
    "causal-lm": causal_lm,
    "seq2seq-lm": causal_lm,  # judged alike
    "image-generation": generation,
}


def task_named(kind: str) -> SimulatedTask:
    """The module of a kind, which a plan has checked."""
    return TASKS[kind]
