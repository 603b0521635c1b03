"""Local data: a client's rows as texts and label indices, by the plan's columns and labels.

The rows are those of :mod:`protocol.rows.read`. Nothing is memory-mapped or cached on disk: no
copy of private rows is left anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from protocol.plan_sections import Task
from protocol.rows.read import Table, read_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A client's data: ``labels[i]`` is the index in ``task.labels`` of ``texts[i]``'s label."""

    texts: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.texts)


def load_rows(path: Path, task: Task) -> Rows:
    """A ``.jsonl``, ``.csv`` or ``.parquet`` file. Raises DataError for the first row that does not fit."""
    table, index = task_rows(path, task), {label: at for at, label in enumerate(task.labels)}
    return Rows(texts=list(table.texts), labels=[index[label] for label in table.labels])


def task_rows(path: Path, task: Task) -> Table:
    """The same with the labels' names."""
    return read_rows(path, text=task.text, label=task.label, labels=task.labels)
