"""One label of several for each page of words that stand at places."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from protocol.manifest import DOCUMENTS
from protocol.rows.pages import Page, read_pages
from protocol.rows.read import Check, Table
from protocol.section import MOST_TOKENS, Column
from protocol.tasks.base import TextSection
from protocol.tasks.classification import Labelled


class DocumentClassification(Labelled, TextSection):
    """What is learnt, and which columns of the local data it is learnt from: the label of a page."""

    KIND: ClassVar[str] = DOCUMENTS
    BASE: ClassVar[str] = DOCUMENTS
    PEFT_TASK: ClassVar[str] = "SEQ_CLS"

    kind: Literal["document-classification"] = Field(
        description="one label of several for each page of words that stand at places"
    )
    words: Column = Field(default="words", description="column with the list of a page's words")
    boxes: Column = Field(
        default="boxes",
        description="column with the list of their boxes [x0, y0, x1, y1], in thousandths of the page",
    )
    max_length: Annotated[int, Field(ge=3, le=MOST_TOKENS)] = Field(
        default=256, description="tokens with the special ones; what stands behind them is cut"
    )

    @model_validator(mode="after")
    def _columns_are_three(self) -> Self:
        if len({self.words, self.boxes, self.label}) < 3:
            raise ValueError("words, boxes and label are three columns")
        return self

    def rows_checked(self, path: Path, check: Check, *, group: str = "") -> Table:
        """See :class:`Labelled`; in the place of texts are pages."""
        columns = (self.words, self.boxes)
        return read_pages(path, columns=columns, target=self.label, check=check, group=group)

    def line(self, text: Page, target: Any) -> dict[str, Any]:
        """See :class:`TaskSection`."""
        boxes = [list(box) for box in text.boxes]
        return {self.words: list(text.words), self.boxes: boxes, self.label: target}

    @property
    def meaning(self) -> dict[str, Any]:
        """Its kind, and the labels in their order."""
        return {"kind": self.kind, "labels": self.labels}

    def note(self) -> dict[str, Any]:
        """See :class:`TaskSection`."""
        length = {"max_length": self.max_length}
        return {"task": self.kind, "pairs": False, **length, "labels": self.labels}
