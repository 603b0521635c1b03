"""One label of several for each text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from protocol.rows.read import Check, Table, one_of
from protocol.section import MOST_LABELS, Column, Label
from protocol.tasks.base import Metric, OutputTask, Quality, TaskSection, metrics_with

# `eval_correct`: rows classified rightly
METRICS = metrics_with(eval_correct=Metric(of="eval_examples"))


class Labelled(TaskSection, ABC):
    """What is learnt is one label of several, whatever it is of."""

    ANSWERS: ClassVar[Literal["labels", "images"]] = "labels"
    METRICS: ClassVar[Mapping[str, Metric]] = METRICS
    QUALITY: ClassVar[Quality] = Quality(name="accuracy", title="accuracy", higher_is_better=True)

    labels: list[Label] = Field(
        min_length=2, max_length=MOST_LABELS, description="all labels, in the order of the logits"
    )
    label: Column = Field(default="label", description="column with the label")

    @model_validator(mode="after")
    def _labels_are_distinct(self) -> Self:
        repeated = sorted(label for label, times in Counter(self.labels).items() if times > 1)
        if repeated:
            raise ValueError(f"labels must be distinct; repeated: {', '.join(repeated[:10])}")
        return self

    @property
    def outputs(self) -> int:
        """A logit per label."""
        return len(self.labels)

    @property
    def column(self) -> str:
        """The column with the label."""
        return self.label

    def check(self) -> Check:
        """One of the labels."""
        return one_of(self.labels)

    def rows(self, path: Path, *, group: str = "") -> Table:
        """See :class:`TaskSection`."""
        return self.rows_checked(path, self.check(), group=group)

    @abstractmethod
    def rows_checked(self, path: Path, check: Check, *, group: str = "") -> Table:
        """The same where ``check`` says what a label has to be."""

    @property
    def said(self) -> str:
        """How many labels."""
        return f"{len(self.labels)} labels"

    @classmethod
    def quality_of(cls, sums: Mapping[str, float]) -> float | None:
        """Share of rows classified rightly."""
        rows = sums.get("eval_examples")
        return sums["eval_correct"] / rows if rows else None


class Classification(Labelled, OutputTask):
    """What is learnt, and which columns of the local data it is learnt from: one label of several."""

    KIND: ClassVar[str] = "classification"

    kind: Literal["classification"] = Field(
        default="classification", description="one label of several for each text"
    )

    def rows_checked(self, path: Path, check: Check, *, group: str = "") -> Table:
        """See :class:`Labelled`."""
        return OutputTask.rows_checked(self, path, check, group=group)

    @property
    def meaning(self) -> dict[str, Any]:
        """The labels in their order."""
        return super().meaning | {"labels": self.labels}

    @property
    def shown(self) -> str:
        """The likeliest label."""
        return "print(model.config.id2label[int(model(**inputs).logits.argmax())])"

    def note(self) -> dict[str, Any]:
        """The labels in their order."""
        return super().note() | {"labels": self.labels}
