"""A label and a file of a medium in each row: what image and audio classification and drawing share."""

from __future__ import annotations

from abc import ABC
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import model_validator

from protocol.media import Medium
from protocol.rows.read import Check, Table
from protocol.tasks.classification import Labelled


class MediaLabelled(Labelled, ABC):
    """A task whose rows are paths of files of ``MEDIUM``, in a column of the medium's name."""

    MEDIUM: ClassVar[Medium]
    PEFT_TASK: ClassVar[None] = None  # peft knows none of these, and needs none

    @property
    def path_column(self) -> str:
        """The column with a file's path."""
        return str(getattr(self, self.MEDIUM.column))

    @model_validator(mode="after")
    def _columns_are_two(self) -> Self:
        if self.path_column == self.label:
            raise ValueError(f"{self.MEDIUM.column} and label are one column")
        return self

    def rows_checked(self, path: Path, check: Check, *, group: str = "") -> Table:
        """See :class:`Labelled`; in the place of texts are paths, of which none is opened."""
        from protocol.rows.media import read_media_rows

        return read_media_rows(
            path, column=self.path_column, target=self.label, check=check, group=group
        )

    def line(self, text: Path, target: Any) -> dict[str, Any]:
        """See :class:`TaskSection`; the path is absolute, so that the row may lie anywhere."""
        return {self.path_column: str(text.resolve()), self.label: target}

    @property
    def meaning(self) -> dict[str, Any]:
        """Its kind, and the labels in their order."""
        return {"kind": self.kind, "labels": self.labels}

    def note(self) -> dict[str, Any]:
        """See :class:`TaskSection`: no length, since no text is cut."""
        return {"task": self.kind, "pairs": False, "max_length": 0, "labels": self.labels}
