"""A text that becomes another: a translation, a summary; the other is learnt token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from protocol.rows.conversations import read_sources
from protocol.rows.read import Table
from protocol.section import Column
from protocol.tasks.writing import WritingTask


class Seq2SeqLm(WritingTask):
    """What is learnt, and which columns of the local data it is learnt from: what a text becomes."""

    KIND: ClassVar[str] = "seq2seq-lm"
    BASE: ClassVar[str] = "seq2seq-lm"
    PEFT_TASK: ClassVar[str] = "SEQ_2_SEQ_LM"

    kind: Literal["seq2seq-lm"] = Field(description="what a text becomes: a translation, a summary")
    source: Column = Field(default="source", description="column with the text that is read")
    target: Column = Field(default="target", description="column with what it becomes")
    prefix: str = Field(
        default="", max_length=200, description="stands before every source, as `translate: `"
    )

    @model_validator(mode="after")
    def _columns_are_two(self) -> Self:
        if self.source == self.target:
            raise ValueError("source and target are one column")
        return self

    def rows(self, path: Path, *, group: str = "") -> Table:
        """See :class:`TaskSection`; targets are what the texts become."""
        skip = self.unanswered == "skip"
        return read_sources(path, self.source, self.target, group=group, skip=skip)

    def line(self, text: str, target: Any) -> dict[str, Any]:
        """See :class:`TaskSection`."""
        return {self.source: text, self.target: target}

    @property
    def meaning(self) -> dict[str, Any]:
        """Its kind, and what stands before a source."""
        return {"kind": self.kind, "prefix": self.prefix}

    @property
    def said(self) -> str:
        """What is learnt, in a few words."""
        return "what texts become"
