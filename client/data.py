"""Local data: a client's rows as texts and what is learnt of them, by the plan's columns.

The rows are those of :mod:`protocol.rows.read`. Nothing is memory-mapped or cached on disk: no
copy of private rows is left anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.tasks import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A client's data: ``targets[i]`` is what the loss compares the outputs of ``texts[i]`` with.

    A text, a pair of texts, or a chat; of text that follows text the targets are the reference answers.
    """

    texts: list[Any]
    targets: list[Any]

    def __len__(self) -> int:
        return len(self.texts)


def load_rows(path: Path, task: Task) -> Rows:
    """A ``.jsonl``, ``.csv`` or ``.parquet`` file. Raises DataError for the first row that does not fit."""
    from client.tasks import task_named

    table = task.rows(path)
    targets = task_named(task.kind).targets(table, task)
    return Rows(texts=list(table.texts), targets=targets)
