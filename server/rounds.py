"""One attempt at a round as a pure state machine: events in, states out. (P-4.5, P-4.6)

Every client that was expected ends in exactly one place, used or dropped with a reason; there is no
silent subset. Messages, files and the clock are the coordinator's business.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
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
class Collecting:
    """Waiting for updates."""

    expected: tuple[str, ...]
    quorum: int
    used: tuple[str, ...] = ()
    dropped: tuple[Dropped, ...] = ()

    @property
    def waiting(self) -> tuple[str, ...]:
        """Who has not answered yet, sorted."""
        done = {*self.used, *(drop.client for drop in self.dropped)}
        return tuple(client for client in self.expected if client not in done)


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


def open_attempt(cohort: tuple[str, ...], *, quorum: int) -> Collecting:
    """The first state. ``cohort`` is sorted and without repetition."""
    if list(cohort) != sorted(set(cohort)):
        raise ValueError("a cohort is sorted and without repetition")
    return Collecting(expected=cohort, quorum=quorum)


def accept(state: Collecting, *clients: str) -> Collecting:
    """Their updates are in the sum."""
    _must_be_waiting(state, clients)
    return replace(state, used=tuple(sorted((*state.used, *clients))))


def drop(state: Collecting, client: str, reason: Reason, detail: str) -> Collecting:
    """``client`` will not take part in this attempt."""
    return drop_all(state, [Dropped(client=client, reason=reason, detail=detail)])


def drop_all(state: Collecting, dropped: Sequence[Dropped]) -> Collecting:
    """None of these will: of thousands one by one would be quadratic."""
    _must_be_waiting(state, [each.client for each in dropped])
    ordered = sorted((*state.dropped, *dropped), key=lambda each: each.client)
    return replace(state, dropped=tuple(ordered))


def close(
    state: Collecting,
    *,
    late: AbstractSet[str] = frozenset(),
    unawaited: AbstractSet[str] = frozenset(),
) -> Complete | Failed:
    """The attempt ends: whoever still is waited for has not replied, was late, or is not needed."""

    def dropped(client: str) -> Dropped:
        reason, detail = Reason.NO_REPLY, "no answer by the deadline"
        if client in unawaited:
            reason, detail = Reason.UNAWAITED, ENOUGH
        elif client in late:
            reason, detail = Reason.LATE, "answered after the deadline"
        return Dropped(client=client, reason=reason, detail=detail)

    state = drop_all(state, [dropped(client) for client in state.waiting])
    kind = Complete if len(state.used) >= state.quorum else Failed
    return kind(
        expected=state.expected, quorum=state.quorum, used=state.used, dropped=state.dropped
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


def _must_be_waiting(state: Collecting, clients: Sequence[str]) -> None:
    # By places in what is sorted: sets of thousands, for every reply, would be quadratic in the cohort.
    dropped = [each.client for each in state.dropped]
    for client in clients:
        answered = _holds(state.used, client) or _holds(dropped, client)
        if answered or not _holds(state.expected, client):
            raise ValueError(f"{client} was not expected, or has answered already")
    if len(set(clients)) != len(clients):
        raise ValueError("a client is named twice")


def _holds(ordered: Sequence[str], client: str) -> bool:
    at = bisect_left(ordered, client)
    return at < len(ordered) and ordered[at] == client


def naming(clients: Mapping[str, str]) -> str:
    """Names with reasons, for the end of a sentence: few, short, and nothing a terminal would act on."""
    told = [f"{name}: {why[:TOLD_LETTERS]}" for name, why in sorted(clients.items())[:TOLD]]
    if len(clients) > TOLD:
        told.append(f"and {len(clients) - TOLD} more")
    text = "; ".join(told)
    return f" ({''.join(c if c.isprintable() else '?' for c in text)})" if told else ""
