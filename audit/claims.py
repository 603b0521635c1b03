"""Whose word a leaf is: what no check of a log can show, leaf by leaf. (P-8.7, P-8.16)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from audit.collected import Placed
from audit.published import Run
from protocol.manifest import MANIFEST_NAME
from protocol.manifests import uncovered
from protocol.transparency.leaves import (
    Abort,
    Aggregate,
    Alive,
    Audit,
    Complaint,
    Evaluation,
    Leaf,
    Retention,
    Roster,
    RoundOpen,
)

Claim = tuple[tuple[str, ...], str]
CLAIMS: Mapping[type[Leaf], Claim] = {
    RoundOpen: (("code",), "which code ran is the coordinator's word"),
    Alive: (
        ("signatures",),
        "of more signatures than the quorum needs the coordinator may leave out some",
    ),
    Evaluation: (
        ("rows", "metrics", "subject"),
        "the coordinator's word: who was asked to measure, on which rows, with which result",
    ),
    Abort: (("revealed",), "the coordinator's word, as far as no client contradicts it"),
    Retention: (("time",), "a log has no times: whether `retention_days` had passed is not shown"),
    Audit: (
        ("verdict", "rounds", "tool", "auditor"),
        "an auditor's word, worth what its key is worth",
    ),
    Complaint: (("about", "receipt"), "a client's word, but for a receipt by the log's key"),
    Roster: (("clients",), "that every key of it is of a client of its own is its writer's word"),
}
UNOPENED = "of an attempt that opened no sum: nothing follows from it"
IN_VAIN = "no sum in the log shows whom this line is of: it counts as spent"


def list_claims(run: Run, *, base: bool) -> None:
    """Note every claim of this log that rests on somebody's word; ``base``: an own base was compared."""
    coverage, log = run.coverage, run.log
    for placed in _all(run):
        if type(placed.leaf) in CLAIMS:
            parts, why = CLAIMS[type(placed.leaf)]
            coverage.leave(_name(placed), why, *parts)
    for one in log.all_rounds:
        for unopened in one.unopened:
            for of_kind in unopened.by_kind.values():
                for placed in of_kind:
                    coverage.leave(_name(placed), UNOPENED)
        opened = {(each.seq, each.group) for each in one.sums if each.of(Aggregate)}
        for spent in one.spent:
            entry = spent.leaf.entry
            if (entry.sequence, entry.group) not in opened:
                coverage.leave(_name(spent), IN_VAIN, "entry")
    if not base:
        why = "the base's fingerprint does not cover it: name a base of your own with --base"
        coverage.leave(MANIFEST_NAME, why, *uncovered(run.manifest))
    if run.plan.secrecy.exchange == "plain" and run.plan.audit.log:
        coverage.leave(_name(log.plan), "nothing in clear is bound to the run's id", "run")


def _all(run: Run) -> Iterator[Placed[Any]]:
    log = run.log
    for kind in (log.rosters, log.evaluations, log.retentions, log.audits, log.complaints):
        yield from kind
    for one in log.all_rounds:
        yield from one.aborts
        for each in one.sums:
            yield from each.of(RoundOpen)
            if not run.plan.witnessed:  # else there are none
                yield from each.of(Alive)


def _name(placed: Placed[Any]) -> str:
    return f"leaf {placed.index} `{placed.leaf.kind}`"
