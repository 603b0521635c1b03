"""One attempt at a round as a pure state machine: events in, states out. (P-4.5, P-4.6)

Every client that was expected ends in exactly one place, used or dropped with a reason; there is no
silent subset. Messages, files and the clock are the coordinator's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from protocol.encoding import seed_from
from protocol.secagg.primitives import RandomBytes

NO_SUM = "no sum"  # how the reason of a client begins that only the others' absence stopped
ENOUGH = "enough others had answered"
TOLD, TOLD_LETTERS = 5, 120  # names, and letters of each reason, in one line for the operator


class Reason(StrEnum):
    """Why an expected client's update was not used."""

    ERROR = "error"  # it refused, or failed
    INVALID = "invalid"  # it sent something that must not enter the sum
    NO_REPLY = "no-reply"  # the deadline came first
    LATE = "late"  # it answered after the deadline
    UNAWAITED = "unawaited"  # enough others had answered: over-selection


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """A client that was expected and not used."""

    client: str
    reason: Reason
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Complete:
    """Enough updates; ``used`` and ``dropped`` together are exactly ``expected``."""

    expected: tuple[str, ...]
    quorum: int
    used: tuple[str, ...]
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """Fewer updates than the quorum; the model stays as it was."""

    expected: tuple[str, ...]
    quorum: int
    used: tuple[str, ...]
    dropped: tuple[Dropped, ...]


class Collecting:
    """Waiting for updates of ``cohort``, which is sorted and without repetition.

    An answer costs the same in a cohort of ten and of ten thousand.
    """

    def __init__(self, cohort: Sequence[str], *, quorum: int) -> None:
        if list(cohort) != sorted(set(cohort)):
            raise ValueError("a cohort is sorted and without repetition")
        self.expected, self.quorum = tuple(cohort), quorum
        self._waiting = dict.fromkeys(cohort)
        self._used: set[str] = set()
        self._dropped: dict[str, Dropped] = {}

    @property
    def waiting(self) -> tuple[str, ...]:
        """Who has not answered yet, sorted."""
        return tuple(self._waiting)

    @property
    def answered(self) -> int:
        """How many are not waited for any more."""
        return len(self.expected) - len(self._waiting)

    @property
    def accepted(self) -> int:
        """How many updates are in the sum."""
        return len(self._used)

    def accept(self, client: str) -> None:
        """``client``'s update is in the sum. Raises ValueError for who is not waited for."""
        self._leave(client)
        self._used.add(client)

    def drop(self, client: str, reason: Reason, detail: str) -> None:
        """``client`` will not take part in this attempt. Raises ValueError for who is not waited for."""
        self._leave(client)
        self._dropped[client] = Dropped(client=client, reason=reason, detail=detail)

    def _leave(self, client: str) -> None:
        if client not in self._waiting:
            raise ValueError(f"{client} was not expected, or has answered already")
        del self._waiting[client]

    def close(
        self,
        *,
        late: AbstractSet[str] = frozenset(),
        unawaited: AbstractSet[str] = frozenset(),
    ) -> Complete | Failed:
        """The attempt ends: whoever still is waited for has not replied, was late, or is not needed."""
        for client in self.waiting:
            if client in unawaited:
                self.drop(client, Reason.UNAWAITED, ENOUGH)
            elif client in late:
                self.drop(client, Reason.LATE, "answered after the deadline")
            else:
                self.drop(client, Reason.NO_REPLY, "no answer by the deadline")
        kind = Complete if len(self._used) >= self.quorum else Failed
        return kind(
            expected=self.expected,
            quorum=self.quorum,
            used=tuple(sorted(self._used)),
            dropped=tuple(self._dropped[client] for client in sorted(self._dropped)),
        )


def missing(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of those whom a round's record dropped the ones that it had waited for."""
    return [entry for entry in record["dropped"] if entry["reason"] != Reason.UNAWAITED]


def draw_cohort(
    names: list[str], *, size: int, seed: int, round_number: int, attempt: int
) -> tuple[str, ...]:
    """``size`` of ``names`` (or all), sorted; the same for the same arguments. (P-4.2)"""
    ordered = sorted(names)
    rng = np.random.default_rng(seed_from("cohort", seed, round_number, attempt))
    chosen = rng.permutation(len(ordered))[:size]
    return tuple(sorted(ordered[index] for index in chosen))


def deal_groups(
    names: list[str], *, groups: int, seed: int, round_number: int, attempt: int
) -> list[list[str]]:
    """Disjoint groups of nearly equal size, each sorted; drawn anew in every attempt."""
    rng = np.random.default_rng(seed_from("groups", seed, round_number, attempt))
    order = [sorted(names)[index] for index in rng.permutation(len(names))]
    return [sorted(order[first::groups]) for first in range(groups)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Who may be asked for a sum of an adapter; ``again`` are groups that are asked as they were."""

    names: tuple[str, ...]
    again: tuple[tuple[str, ...], ...] = ()


Groups = Sequence[Sequence[str]]


def choose_among(
    names: Iterable[str], asked: Sequence[Groups], *, size: int, quorum: int
) -> Choice | None:
    """Who of ``names`` opens a sum of an adapter whose sums ``asked`` attempts wanted before. (P-6.10)

    Clients open another one over the very same clients alone: so only those are asked who were in none of
    these attempts, or all of one of them again, in its groups. None while neither is possible. Others are
    preferred where they are ``size``: whoever spoils a sum is then not asked again.
    """
    there = set(names)
    fresh = tuple(sorted(there.difference(*(group for groups in asked for group in groups))))
    if not asked or len(fresh) >= size:
        return Choice(names=fresh)
    for groups in reversed(asked):
        before = {name for group in groups for name in group}
        if before <= there:
            return Choice(names=tuple(sorted(before)), again=tuple(map(tuple, groups)))
    return Choice(names=fresh) if len(fresh) >= quorum else None


def draw_poisson(names: list[str], *, sampling: float, random: RandomBytes) -> tuple[str, ...]:
    """Every name by itself with probability ``sampling`` (to 2^-64), sorted; from secret randomness."""
    limit = math.floor(sampling * 2**64)
    return tuple(name for name in sorted(names) if int.from_bytes(random(8), "big") < limit)


def naming(clients: Mapping[str, str]) -> str:
    """Names with reasons, for the end of a sentence: few, short, and nothing a terminal would act on."""
    told = [f"{name}: {why[:TOLD_LETTERS]}" for name, why in sorted(clients.items())[:TOLD]]
    if len(clients) > TOLD:
        told.append(f"and {len(clients) - TOLD} more")
    text = "; ".join(told)
    return f" ({''.join(c if c.isprintable() else '?' for c in text)})" if told else ""
