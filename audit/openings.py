"""Which sums clients were asked to open, whether they gave an adapter or not. (P-6.10, P-8.16)

Of one incoming adapter, two sums over nearly the same clients show what their difference did. A sum that was
asked for and is not in the log may be in the coordinator's hands: the log says which, and this module what
follows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

from audit.collected import Placed, Round, Sum
from audit.published import REMEDY, Run
from audit.report import Findings
from audit.sums import instruction_after, verify_terms
from protocol.errors import ProofError
from protocol.secagg.openings import far_apart
from protocol.transparency.leaves import (
    Abort,
    Adapter,
    Advert,
    Aggregate,
    Alive,
    RoundOpen,
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A sum that ``clients`` (ids in hex) were asked to open, of the adapter that came into ``round``."""

    round: int
    seq: int
    group: int
    adapter: str
    clients: frozenset[str]
    opened: bool


def check_openings(run: Run, findings: Findings) -> None:
    """All sums of a run together; each by itself is checked with its round."""
    sums = list(sums_asked(run))
    with findings.checking("no two sums of one adapter differ by few clients"):
        _check_differences(run, sums)
    with findings.checking("attempts and void rounds are within the plan"):
        _check_limits(run)
    with findings.checking("what was asked for in vain was asked as the plan says"):
        for incoming, part in _with_adapters(run):
            for abort in part.aborts:
                _check_revealed(run, part, abort)
            for unopened in part.unopened:
                _check_unopened(run, part, unopened, incoming)
    for each in _held(run, sums):
        findings.leave_open(
            f"round {each.round}: the sum of group {each.group} of attempt {each.seq}, over "
            f"{len(each.clients)} clients, was asked for and is not in the log",
            "the coordinator may hold this sum",
        )


def _with_adapters(run: Run) -> Iterator[tuple[Adapter, Round]]:
    """Every part of the log after round 0, with the adapter that came into it."""
    rounds = run.log.rounds
    for before, after in pairwise(rounds):
        yield before.adapter.leaf, after
    if run.log.pending is not None:
        yield rounds[-1].adapter.leaf, run.log.pending


def sums_asked(run: Run) -> Iterator[Asked]:
    """Every sum that clients were asked to open, in the order of the log."""
    for incoming, part in _with_adapters(run):
        number = incoming.round + 1
        for opened in part.sums:
            ends, alive = opened.of(Aggregate), opened.of(Alive)
            if ends and alive:
                yield Asked(
                    round=number,
                    seq=opened.seq,
                    group=opened.group,
                    adapter=incoming.adapter_out,
                    clients=frozenset(alive[0].leaf.ids),
                    opened=True,
                )
        for abort in part.aborts:
            for asked in abort.leaf.revealed:
                yield Asked(
                    round=number,
                    seq=abort.leaf.seq,
                    group=asked.group,
                    adapter=incoming.adapter_out,
                    clients=frozenset(asked.ids),
                    opened=False,
                )


def _check_differences(run: Run, sums: list[Asked]) -> None:
    """The same clients, or at least a least sum of others, on either side."""
    by_adapter: dict[str, list[Asked]] = defaultdict(list)
    for each in sums:
        by_adapter[each.adapter].append(each)
    least = run.plan.least_sum
    for group in by_adapter.values():
        for first, second in combinations(group, 2):
            if not far_apart(first.clients, second.clients, least=least):
                sides = len(first.clients - second.clients), len(second.clients - first.clients)
                raise _bad(
                    f"attempts {first.seq} and {second.seq} asked for sums of one adapter that differ by "
                    f"{sides[0]} and {sides[1]} clients, the least sum is {least}"
                )


def _check_limits(run: Run) -> None:
    plan = run.plan
    numbered = [(one.adapter.leaf.seq, one.adapter.leaf.attempt) for one in run.log.rounds]
    numbered += [(a.leaf.seq, a.leaf.attempt) for one in run.log.all_rounds for a in one.aborts]
    for seq, attempt in numbered:
        if attempt > plan.most_attempts or seq > plan.most_numbers:
            raise _bad(f"attempt {attempt} with number {seq}, which no client takes part in")
    voids = [one.number for one in run.log.rounds if one.adapter.leaf.void]
    if len(voids) > plan.secrecy.voids + 1:  # with the first one too many a run ends
        raise _bad(f"{len(voids)} void rounds, the plan allows {plan.secrecy.voids}")


def _check_revealed(run: Run, part: Round, abort: Placed[Abort]) -> None:
    """Known clients in order, each in one sum; under witnesses what was witnessed."""
    leaf, everybody = abort.leaf, [c for asked in abort.leaf.revealed for c in asked.ids]
    _, members = run.members(abort.index)
    groups = [asked.group for asked in leaf.revealed]
    if groups != sorted(set(groups)) or (leaf.group is not None and {*groups} - {leaf.group}):
        raise _bad(f"leaf {abort.index}: `revealed` is out of order, or of other groups")
    if len(set(everybody)) != len(everybody):
        raise _bad(f"leaf {abort.index}: a client is in two sums of attempt {leaf.seq}")
    for asked in leaf.revealed:
        names = [members.names.get(bytes.fromhex(client)) for client in asked.ids]
        if asked.ids != sorted(asked.ids) or None in names:
            raise _bad(f"leaf {abort.index}: `revealed` lists clients out of order or of no roster")
        if strange := [name for name in names if name and not run.plan.cohort.takes(name)]:
            raise _bad(
                f"leaf {abort.index}: `revealed` lists {strange[0]}, whom the plan does not name"
            )
        if run.plan.witnessed:
            witnessed = [
                (each.leaf.rid, each.leaf.ids)
                for unopened in part.unopened
                if (unopened.seq, unopened.group) == (leaf.seq, asked.group)
                for each in unopened.of(Alive)
            ]
            if witnessed != [(asked.rid, asked.ids)]:
                raise _bad(f"leaf {abort.index}: `revealed` is not what was witnessed")


def _check_unopened(run: Run, part: Round, unopened: Sum, incoming: Adapter) -> None:
    """(P-6.11) An attempt that gave nothing was asked for as one that did."""
    ends = [abort.leaf for abort in part.aborts if abort.leaf.seq == unopened.seq]
    for opened in unopened.of(RoundOpen):
        if not unopened.of(Advert) or opened.leaf.round != incoming.round + 1:
            raise _bad(f"leaf {opened.index}: an attempt of round {opened.leaf.round}")
        if ends and opened.leaf.attempt != ends[-1].attempt:
            raise _bad(f"leaf {opened.index}: attempt {opened.leaf.attempt} ended as another")
        verify_terms(run, unopened, instruction_after(run, incoming, opened.leaf.attempt))


def _held(run: Run, sums: list[Asked]) -> Iterator[Asked]:
    """What the coordinator may hold beside the log: without noise, a sum that came again is the same one."""
    logged = {(each.round, each.clients) for each in sums if each.opened}
    for each in sums:
        if not each.opened and (run.plan.private or (each.round, each.clients) not in logged):
            yield each


def _bad(fault: str) -> ProofError:
    return ProofError(fault, REMEDY)
