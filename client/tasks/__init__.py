"""What a client does otherwise for each kind of task: one module per kind, by its name in the plan."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from client.tasks import classification, regression
from protocol.rows.read import Table


class Score(Protocol):
    """What rows with known targets say of a model's outputs."""

    @property
    def metrics(self) -> dict[str, float]:
        """The two of the task's metrics that are of rows kept out, in their order."""
        ...

    @property
    def loss_sum(self) -> float:
        """Over the rows."""
        ...


class ClientTask(Protocol):
    """A module of this package."""

    @property
    def TARGETS(self) -> type[np.generic]:  # noqa: N802
        """Of the array of targets."""
        ...

    def targets(self, table: Table, task: Any) -> list[Any]:
        """What the loss compares with, row by row."""
        ...

    def score(self, outputs: npt.NDArray[np.float32], targets: npt.NDArray[Any]) -> Score:
        """Of ``outputs`` (rows, outputs) against ``targets`` (rows,)."""
        ...


TASKS: dict[str, ClientTask] = {
    "classification": classification,
    "regression": regression,
}


def task_named(kind: str) -> ClientTask:
    """The module of a kind, which a plan has checked."""
    return TASKS[kind]
