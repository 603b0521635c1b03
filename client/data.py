"""Local data: a client's rows as texts and label indices, by the plan's columns and labels.

The rows are those of :mod:`protocol.rows.read`; here they become an in-memory ``datasets.Dataset`` whose
``ClassLabel`` feature turns names into indices. Nothing is memory-mapped, fingerprinted to disk or cached: no
copy of private rows is left anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from protocol.plan import Task
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
    return _through_datasets(task_rows(path, task), task)


def task_rows(path: Path, task: Task) -> Table:
    """The same with the labels' names, and without the library."""
    return read_rows(path, text=task.text, label=task.label, labels=task.labels)


def _through_datasets(table: Table, task: Task) -> Rows:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=task.labels)})
    rows = {"text": table.texts, "label": table.labels}
    columns = Dataset.from_dict(
        rows, features=features
    ).data  # the Arrow table: faster than row by row
    return Rows(
        texts=columns.column("text").to_pylist(), labels=columns.column("label").to_pylist()
    )
