"""Leaves that say nothing new, or stand where none belongs; attempts that are not counted on. (P-8.8)"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from audit.collected import Placed, Round
from audit.published import Run
from protocol.errors import ProofError
from protocol.transparency.leaf_codec import decode_leaf
from protocol.transparency.leaves import (
    Abort,
    Alive,
    Leaf,
    Pad,
    Release,
    Roster,
)


def repeats(run: Run) -> Iterator[str]:
    """What is wrong with the log as a list of leaves."""
    leaves = list(_decoded(run))
    yield from _doubled(run, leaves)
    yield from _rosters(run)
    yield from _pads(run, leaves)
    for one in run.log.all_rounds:
        yield from _attempts(run, one)


def _decoded(run: Run) -> Iterator[Leaf | None]:
    for entry in run.copy.entries:
        try:
            yield decode_leaf(entry).leaf
        except ProofError:
            yield None  # a fault, and said already


def _doubled(run: Run, leaves: list[Leaf | None]) -> Iterator[str]:
    """The same bytes twice. A release and a roster may come back, but not while they are in force."""
    first: dict[bytes, int] = {}
    last: dict[int, bytes] = {}  # of each round's releases
    for index, (entry, leaf) in enumerate(zip(run.copy.entries, leaves, strict=True)):
        if leaf is None or isinstance(leaf, Pad | Roster):
            continue
        if isinstance(leaf, Release):
            again, last[leaf.round] = last.get(leaf.round) == entry, entry
        else:
            again = first.setdefault(entry, index) != index
        if again:
            yield f"leaf {index} `{leaf.kind}` was in the log already"


def _rosters(run: Run) -> Iterator[str]:
    before = ""
    for placed in run.log.rosters:
        if run.plan.secrecy.exchange == "plain":
            yield f"leaf {placed.index} `roster`, where nothing is summed in secret"
        if placed.leaf.root == before:
            yield f"leaf {placed.index} `roster` is the roster that was in force already"
        before = placed.leaf.root


def _pads(run: Run, leaves: list[Leaf | None]) -> Iterator[str]:
    """(P-8.8) Under witnesses an attempt begins with one leaf a group, in their order: `alive` or `pad`."""
    if not run.plan.witnessed:
        return  # any pad is a fault by itself
    groups = run.plan.secrecy.groups
    numbered = list(enumerate(leaves))
    for of_start, found in groupby(numbered, lambda each: isinstance(each[1], Alive | Pad)):
        if not of_start:
            continue
        places = list(found)
        wrong = [leaf.group != at for at, (_, leaf) in enumerate(places) if isinstance(leaf, Alive)]
        if len(places) != groups or any(wrong) or not wrong:
            yield f"leaf {places[0][0]}: {len(places)} `alive` and `pad` where {groups} begin an attempt"


def _attempts(run: Run, one: Round) -> Iterator[str]:
    """Attempts at a round are counted from 1; who was killed may try the same once more."""
    pending = one is run.log.pending
    last, whole = 0, [each for each in one.aborts if each.leaf.group is None]
    for abort in whole:
        if abort.leaf.attempt not in {max(last, 1), last + 1}:
            yield f"leaf {abort.index} `abort` is of attempt {abort.leaf.attempt}, after {last}"
        if run.plan.secrecy.exchange == "plain" and abort.leaf.seq:
            yield f"leaf {abort.index} `abort` has a number, where nothing is summed in secret"
        last = abort.leaf.attempt
    if not pending:
        yield from _closing(one, whole, last)


def _closing(one: Round, whole: list[Placed[Abort]], last: int) -> Iterator[str]:
    leaf, where = one.adapter.leaf, f"leaf {one.adapter.index} `adapter`"
    secret = leaf.exchange == "secagg" and leaf.round > 0 and not leaf.void
    attempts = {max(last, 1), last + 1}
    if leaf.round == 0:
        attempts = {0}
    elif leaf.void:
        # What was asked for before a kill ends the round, also where the attempt made again asks for nothing.
        attempts = {last} if any(each.leaf.revealed for each in whole) else set()
    if leaf.attempt not in attempts:
        yield f"{where} is of attempt {leaf.attempt}, after {last}"
    if leaf.seq and not secret:
        yield f"{where} has a number, and no sum"
    for abort in one.aborts:
        if abort.leaf.group is not None and abort.leaf.attempt != leaf.attempt:
            yield f"leaf {abort.index} `abort` of a group is of another attempt than its round"
