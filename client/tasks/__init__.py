"""What a client does otherwise for each kind of task: one module per kind, by its name in the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from client.tasks import causal_lm, classification, generation, media, regression, seq2seq_lm
from protocol.rows.read import Table
from protocol.tasks import MEDIA_TASKS

if TYPE_CHECKING:
    from client.data import Rows
    from client.examples import Examples
    from client.opened_base import OpenedBase
    from protocol.recipe import Recipe


class Score(Protocol):
    """What rows with known targets say of a model's outputs."""

    @property
    def metrics(self) -> dict[str, float]:
        """Those of the task's metrics that are of rows kept out, in their order."""
        ...

    @property
    def loss_sum(self) -> float:
        """Over the rows."""
        ...


class ClientTask(Protocol):
    """A module of this package."""

    def targets(self, table: Table, task: Any) -> list[Any]:
        """What the loss compares with, row by row."""
        ...

    def encode(self, rows: Rows, recipe: Recipe, base: OpenedBase) -> Examples:
        """What the graph reads, and what the loss compares with. Raises DataError for a row that is odd."""
        ...

    def score(self, outputs: npt.NDArray[np.float32], targets: npt.NDArray[Any]) -> Score:
        """Of ``outputs`` (rows, outputs) against the targets of the encoded rows."""
        ...


class OutputTask(ClientTask, Protocol):
    """One whose answers are a head's."""

    @property
    def TARGETS(self) -> type[np.generic]:  # noqa: N802
        """Of the array of targets, (rows,)."""
        ...


OUTPUT_TASKS: dict[str, OutputTask] = {
    **dict.fromkeys(("classification", "document-classification"), classification),
    "regression": regression,
    **dict.fromkeys(MEDIA_TASKS, media),
}
TASKS: dict[str, ClientTask] = {
    **OUTPUT_TASKS,
    "causal-lm": causal_lm,
    "seq2seq-lm": seq2seq_lm,
    "image-generation": generation,
}


def task_named(kind: str) -> ClientTask:
    """The module of a kind, which a plan has checked."""
    return TASKS[kind]
