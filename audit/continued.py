"""Runs that go on from an adapter of another run: what their plan says of it, and whether it holds. (P-8.16)

:func:`start_of` derives a plan's ``start`` from a run's log. Whoever writes the next plan takes it from
there; an auditor who has the earlier run derives it again and compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from audit.openings import sums_asked
from audit.published import REMEDY, Run
from audit.report import Findings, Unproven
from protocol.errors import PlanError, ProofError
from protocol.privacy.accounting import Spent
from protocol.privacy.ledger import Entry, Tally
from protocol.secagg.openings import far_apart
from protocol.start import NOTHING_BEFORE, SpentBefore, Start


def start_of(run: Run, number: int, *, size: int | None = None) -> Start:
    """The adapter of round ``number`` as a start, by the log's first ``size`` leaves (all without it).

    Raises ProofError for a round that these do not have, PlanError for round 0: that is a plan anew.
    """
    if number == 0:
        raise PlanError(
            "round 0 is nobody's work: it is what its plan begins with",
            "name a later round; or write a plan without [start], or with that plan's own",
        )
    size = run.copy.checkpoint.size if size is None else size
    placed = [round_.adapter for round_ in run.log.rounds if round_.number == number]
    if not placed or not placed[0].index < size <= run.copy.checkpoint.size:
        newest = run.log.rounds[-1].number
        raise ProofError(f"the log has no round {number}", f"it has 0 to {newest}")
    leaf, before = placed[0].leaf, run.plan.start
    return Start(
        adapter=leaf.adapter_out,
        settings=run.plan.adapter_settings,
        round=number,
        rounds=run.plan.turn(number),
        plans=[*(before.plans if before else []), run.plan_digest],
        origin=run.copy.checkpoint.origin,
        size=size,
        root=run.copy.tree.root(size).hex(),
        spent=_spent(run, [line.leaf.entry for line in run.log.spent if line.index < size]),
    )


def _spent(run: Run, entries: Sequence[Entry]) -> SpentBefore:
    """With what was spent before that run; without noise there is no bound, whatever was before."""
    before, privacy = run.plan.spent_before, run.plan.privacy
    if privacy.mechanism == "none":
        return NOTHING_BEFORE
    if privacy.mechanism == "central":
        return SpentBefore(
            mechanism="central",
            sums=before.sums + len(entries),
            noise_multiplier=privacy.noise_multiplier,
            sampling=privacy.sampling,
        )
    tally = Tally(entries)
    spent = [Spent(rho=before.rho, xi=before.xi) + tally.spent(name) for name in tally.clients]
    return SpentBefore(
        mechanism="distributed",
        rho=max([before.rho, *(cost.rho for cost in spent)]),
        xi=max([before.xi, *(cost.xi for cost in spent)]),
    )


def unchecked_start(run: Run) -> list[Unproven]:
    """What a plan's start leaves to the run before, when an auditor does not have it."""
    start = run.plan.start
    if start is None:
        return []
    return [
        Unproven(
            what=f"round 0 is the adapter of round {start.round} of {start.origin}, after "
            f"{start.rounds} rounds in {len(start.plans)} run(s)",
            leaves="that it is that run's adapter, and not one beside it of which nearly the same sum was "
            "opened; how it was made; what clients spent there: name that run with --before RUN",
        )
    ]


def check_before(run: Run, runs: Sequence[Run], findings: Findings) -> None:
    """The run goes on from the first of ``runs`` as its plan says; the others are those before that one."""
    start, before = run.plan.start, runs[0]
    if start is None or start.plans[-1] != before.plan_digest:
        raise ProofError(
            f"a run of plan {before.plan_digest[:12]}… is not the one that this run goes on from",
            "name that one, and after it those before: --before",
        )
    with findings.checking("what the plan says of the run before"):
        check_start(run, before, start)
    with findings.checking("no two sums of the start differ by few clients, over all these runs"):
        for earlier in runs:  # after void rounds a start is an adapter of several
            _check_sums(run, earlier, start)


def check_start(run: Run, before: Run, start: Start) -> None:
    """What a plan says of its start is what the log of the run before gives. Raises ProofError."""
    if before.plan.base != run.plan.base or before.plan.task.meaning != run.plan.task.meaning:
        raise _bad("the run before has another base or other labels")
    derived = start_of(before, start.round, size=start.size).model_dump()
    for field, value in start.model_dump().items():
        if value != derived[field]:
            raise _bad(f"`start.{field}` of the plan is not what that run's log gives")


def _check_sums(run: Run, before: Run, start: Start) -> None:
    """(P-6.10) Of one incoming adapter, the same clients or far apart, whichever run asked."""
    least = min(run.plan.least_sum, before.plan.least_sum)
    of_start = [
        [summed for summed in sums_asked(log) if summed.adapter == start.adapter]
        for log in (run, before)
    ]
    for ours, theirs in product(*of_start):
        if not far_apart(ours.clients, theirs.clients, least=least):
            raise _bad(
                f"round {ours.round}, and round {theirs.round} of a run before, asked for sums of one "
                f"adapter that differ by {len(ours.clients - theirs.clients)} and "
                f"{len(theirs.clients - ours.clients)} clients, the least sum is {least}"
            )


def _bad(fault: str) -> ProofError:
    return ProofError(fault, REMEDY)
