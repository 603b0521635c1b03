"""A run's leaves, sorted into attempts and rounds. (P-8.8)

:func:`audit.order.collect` makes these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from protocol.errors import ProofError
from protocol.transparency.dsse import REMEDY
from protocol.transparency.leaves import (
    Abort,
    Adapter,
    Advert,
    Aggregate,
    Alive,
    Audit,
    Cohort,
    Complaint,
    Evaluation,
    Leaf,
    PlanLeaf,
    Release,
    Retention,
    Reveal,
    Roster,
    RoundOpen,
    Shares,
    Spent,
    Vector,
    Withdrawal,
)
from protocol.transparency.sum_leaves import SumLeaves

L = TypeVar("L", bound=Leaf)
STAGES: tuple[type[Leaf], ...] = (
    Advert,
    Cohort,
    Shares,
    RoundOpen,
    Vector,
    Alive,
    Reveal,
    Aggregate,
)


@dataclass(frozen=True, kw_only=True)
class Placed(Generic[L]):
    """A leaf, where it stands, and what it is about (SHA-256 by name)."""

    index: int
    leaf: L
    subjects: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong, and in which round (None: in the run as a whole)."""

    round: int | None
    what: str


@dataclass
class Sum:
    """The leaves of one group in one attempt, by kind."""

    seq: int
    group: int
    by_kind: dict[type[Leaf], list[Placed[Leaf]]] = field(default_factory=dict)
    broken: bool = False

    @property
    def complete(self) -> bool:
        """It is opened, and all of its leaves are there."""
        return not self.broken and all(self.by_kind.get(kind) for kind in STAGES)

    def of(self, kind: type[L]) -> list[Placed[L]]:
        """Its leaves of a kind."""
        return self.by_kind.get(kind, [])  # type: ignore[return-value]

    def leaves(self) -> SumLeaves:
        """What a transcript is made of; of a complete sum."""
        return SumLeaves(
            adverts=tuple(each.leaf for each in self.of(Advert)),
            cohort=self.of(Cohort)[0].leaf,
            shares=tuple(each.leaf for each in self.of(Shares)),
            opened=self.of(RoundOpen)[0].leaf,
            vectors=tuple(each.leaf for each in self.of(Vector)),
            alive=self.of(Alive)[0].leaf,
            reveal=self.of(Reveal)[0].leaf,
            aggregate=self.of(Aggregate)[0].leaf,
        )


@dataclass
class Round:
    """What led to a round's adapter: aborted attempts, opened sums, what was spent."""

    adapter: Placed[Adapter]
    sums: list[Sum]
    unopened: list[Sum]  # under witnesses: leaves of sums that were not opened
    aborts: list[Placed[Abort]]
    spent: list[Placed[Spent]]

    @property
    def number(self) -> int:
        """Of the round."""
        return self.adapter.leaf.round


@dataclass
class Collected:
    """A run's log, sorted."""

    size: int
    plan: Placed[PlanLeaf]
    rosters: list[Placed[Roster]] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    pending: Round | None = None  # attempts after the last round; its adapter is the last round's
    evaluations: list[Placed[Evaluation]] = field(default_factory=list)
    releases: list[Placed[Release]] = field(default_factory=list)
    retentions: list[Placed[Retention]] = field(default_factory=list)
    audits: list[Placed[Audit]] = field(default_factory=list)
    complaints: list[Placed[Complaint]] = field(default_factory=list)
    withdrawals: list[Placed[Withdrawal]] = field(default_factory=list)
    strays: list[Placed[Leaf]] = field(default_factory=list)  # of sums, where they are of none
    faults: list[Fault] = field(default_factory=list)

    @property
    def spent(self) -> list[Placed[Spent]]:
        """Every line of the privacy ledger."""
        return [each for one in self.all_rounds for each in one.spent]

    @property
    def all_rounds(self) -> Iterator[Round]:
        """Those with an adapter, then what came after them."""
        yield from self.rounds
        if self.pending is not None:
            yield self.pending

    def roster_at(self, index: int) -> Placed[Roster]:
        """The roster in force at a leaf. Raises ProofError when there is none yet."""
        before = [roster for roster in self.rosters if roster.index < index]
        if not before:
            raise ProofError(f"leaf {index}: there is no roster before it", REMEDY)
        return before[-1]
