"""What every task has: its columns, the size of its head, and what of it is counted. (P-1.2, P-3.2)"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from protocol.rows.read import Check, Table, read_rows
from protocol.section import MOST_TOKENS, Column, Section

LEAST_PAIR = 8  # tokens: four special ones, and as many words
MOST_LOSS = 64  # of one row: nats, or squares of the range


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A figure that every client counts; the coordinator may know the sum over clients.

    In a secret sum it travels as an integer, itself times ``scale``, rounded. ``of`` names the counter that
    bounds it, at most ``most`` for each unit of that; without one the plan does. (P-6.11)
    """

    scale: int = 1
    of: str = ""
    most: int = 1

    @property
    def each(self) -> int:
        """The most for a unit of ``of``, as it travels."""
        return self.most * self.scale


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """The figure that says how good a model is, a share: its name in files, its title, its best end."""

    name: str
    title: str
    higher_is_better: bool

    UNIT: ClassVar[str] = " %"  # behind a number that is drawn

    def figure(self, value: float) -> str:
        """For people, without the title."""
        return f"{value:.1%}"

    def said(self, value: float) -> str:
        """For people."""
        return f"{self.title} {self.figure(value)}"

    def drawn(self, value: float) -> float:
        """In the unit of plots."""
        return 100 * value

    def share(self, value: float) -> float:
        """The same in 0..1 with 1 as its best: what floors are set for."""
        return value if self.higher_is_better else 1 - value

    def bound(self, floor: int) -> int:
        """The least, or most, that a floor of so many thousandths allows, in thousandths. (P-9.6)"""
        return floor if self.higher_is_better else 1000 - floor


def metrics_with(**measured: Metric) -> dict[str, Metric]:
    """All metrics of a task in the order of the wire; ``measured`` is what the rows kept out add up to.

    The loss of a row is a mean over what of it counts, if that is more than one thing.
    """
    return {
        "examples": Metric(),  # rows trained on, counted once per epoch
        # sum over those rows of the last epoch's training loss
        "loss_sum": Metric(scale=2**12, of="examples", most=MOST_LOSS),
        "eval_examples": Metric(),  # rows kept out for local evaluation
        **measured,  # of those, by the adapter *received*
        "train_seconds": Metric(scale=1000),  # wall time of local training
    }


class TaskSection(Section, ABC):
    """What every kind of task says of itself."""

    kind: str = Field(description="what is learnt of a row")

    KIND: ClassVar[str]
    ANSWERS: ClassVar[Literal["labels", "range", "text", "images"]]  # what a release has of it
    BASE: ClassVar[str]  # what a base has to be built for
    PEFT_TASK: ClassVar[str | None]
    METRICS: ClassVar[Mapping[str, Metric]]
    QUALITY: ClassVar[Quality]

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Rows of the head; 0 where the base's own output layer answers."""

    @abstractmethod
    def rows(self, path: Path, *, group: str = "") -> Table:
        """The rows of a file, ``group`` being one more column. Raises as read_rows."""

    @abstractmethod
    def line(self, text: Any, target: Any) -> dict[str, Any]:
        """A row as a file has it, by column: what :meth:`rows` gives again."""

    @property
    @abstractmethod
    def meaning(self) -> dict[str, Any]:
        """By key what makes outputs mean what they mean: an adapter goes on under no other."""

    @property
    @abstractmethod
    def said(self) -> str:
        """What is learnt, in a few words."""

    @property
    def pairs(self) -> bool:
        """Whether a row has two texts."""
        return False

    @property
    def longest(self) -> int:
        """Tokens that a text may have; 0 where rows are no texts."""
        return 0

    @abstractmethod
    def note(self) -> dict[str, Any]:
        """What a device has to know of it, as fields of ``release.json``."""

    @classmethod
    @abstractmethod
    def quality_of(cls, sums: Mapping[str, float]) -> float | None:
        """The quality that clients' summed metrics come to; None without rows kept out."""


class TextSection(TaskSection, ABC):
    """A task whose rows are texts."""

    max_length: Annotated[int, Field(ge=3, le=MOST_TOKENS)] = Field(
        default=64, description="tokens with the special ones; longer texts are cut"
    )

    @property
    def longest(self) -> int:
        """See :class:`TaskSection`."""
        return self.max_length


class OutputTask(TextSection, ABC):
    """A task of texts, or pairs of them, that a head answers."""

    text: Column = Field(default="text", description="column with the text")
    text_pair: Annotated[str, Field(max_length=200)] = Field(
        default="", description="column with a second text, for pairs; empty: there is none"
    )

    @model_validator(mode="after")
    def _pairs_have_room(self) -> Self:
        if self.text_pair and self.text_pair in (self.text, self.column):
            raise ValueError(
                f"text_pair is the column `{self.text_pair}`, which is something else already"
            )
        if self.text_pair and self.max_length < LEAST_PAIR:
            raise ValueError(f"max_length is {self.max_length}; a pair needs {LEAST_PAIR} tokens")
        return self

    BASE: ClassVar[str] = "sequence-classification"
    PEFT_TASK: ClassVar[str] = "SEQ_CLS"

    @property
    @abstractmethod
    def column(self) -> str:
        """The column with what is learnt."""

    @abstractmethod
    def check(self) -> Check:
        """What a value of that column has to be."""

    @property
    @abstractmethod
    def shown(self) -> str:
        """A line of Python that prints the answer of ``model`` to ``inputs``."""

    def rows(self, path: Path, *, group: str = "") -> Table:
        """See :class:`TaskSection`."""
        return self.rows_checked(path, self.check(), group=group)

    def rows_checked(self, path: Path, check: Check, *, group: str = "") -> Table:
        """The same where ``check`` says what a value of that column has to be."""
        return read_rows(
            path,
            text=self.text,
            pair=self.text_pair,
            target=self.column,
            check=check,
            group=group,
        )

    def line(self, text: Any, target: Any) -> dict[str, Any]:
        """See :class:`TaskSection`."""
        texts = (text,) if isinstance(text, str) else text
        columns = (self.text, self.text_pair)
        return dict(zip(columns, texts, strict=False)) | {self.column: target}

    @property
    def meaning(self) -> dict[str, Any]:
        """Its kind, and how many texts a row has."""
        return {
            "kind": self.kind,
            "text_pair": "two texts a row" if self.pairs else "one text a row",
        }

    @property
    def asked(self) -> str:
        """What a tokenizer is given in Python, for an example."""
        return '["a text"], ["another"]' if self.pairs else '["a text"]'

    @property
    def pairs(self) -> bool:
        """See :class:`TaskSection`."""
        return bool(self.text_pair)

    def note(self) -> dict[str, Any]:
        """See :class:`TaskSection`."""
        return {"task": self.kind, "pairs": self.pairs, "max_length": self.max_length}
