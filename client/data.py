"""Local data: a client's rows as texts and what is learnt of them, by the plan's columns.

The rows are those of :mod:`protocol.rows.read`. Nothing is memory-mapped or cached on disk: no
copy of private rows is left anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocol.rows.media import RowFile
from protocol.rows.places import Places
from protocol.tasks import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A client's data: ``targets[i]`` is what the loss compares the outputs of ``texts[i]`` with.

    A text, a pair of texts, a page, or a chat; of text that follows text targets are the reference answers.
    ``places[i]`` is where row i stands; rows behind the last of them are of no file.
    """

    texts: list[Any]
    targets: list[Any]
    places: Places = field(default_factory=Places, compare=False)

    def __len__(self) -> int:
        return len(self.texts)

    def place(self, row: int) -> str:
        """Where row ``row`` stands, for its owner: file and line; its number where it is of no file."""
        return str(self.places[row]) if row < len(self.places) else self.line(row)

    def line(self, row: int) -> str:
        """The same without the file, which is nobody else's business."""
        if row >= len(self.places):
            return f"row {row + 1}"
        place = self.places[row]
        return f"{place.unit} {place.number}"

    def questions(self) -> list[Any]:
        """What is asked in each row: its text, or its file with where it stands."""
        return [
            RowFile(text, self.place(row)) if isinstance(text, Path) else text
            for row, text in enumerate(self.texts)
        ]

    def take(self, rows: Sequence[int]) -> Rows:
        """The rows of these numbers, in that order."""
        return Rows(
            texts=[self.texts[row] for row in rows],
            targets=[self.targets[row] for row in rows],
            places=self.places.take(rows) if len(self.places) == len(self) else Places(),
        )


def load_rows(path: Path, task: Task) -> Rows:
    """A ``.jsonl``, ``.csv`` or ``.parquet`` file. Raises DataError for the first row that does not fit."""
    from client.tasks import task_named

    table = task.rows(path)
    targets = task_named(task.kind).targets(table, task)
    return Rows(texts=list(table.texts), targets=targets, places=table.places)
