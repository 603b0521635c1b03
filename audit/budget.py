"""The privacy ledger of a run, computed again from the plan. (P-7.5, P-8.16)

Every opened sum has its line, no line is cheaper than the plan's noise makes it, and nobody spent more
than the plan allows.
"""

from __future__ import annotations

from collections.abc import Sequence

from audit.collected import Placed, Round
from audit.published import REMEDY, Run
from audit.report import Findings, Spending
from protocol.encoding import canonical_json
from protocol.errors import MachineError, ProofError
from protocol.privacy.ledger import (
    Entry,
    Tally,
    central_numbers,
    client_epsilon,
    distributed_numbers,
)
from protocol.privacy.planned import mechanism_of
from protocol.transparency.leaf_codec import sha256
from protocol.transparency.leaves import Aggregate, Alive, Spent

LEDGER = "privacy.jsonl"


def check_ledger_of(run: Run, round_: Round, findings: Findings) -> None:
    """The lines of one round, or of what came after the last: their numbers, one for every opened sum."""
    if not run.plan.private:
        if round_.spent:
            findings.fault("privacy is spent under a plan without any")
        return
    pending = round_ is run.log.pending
    if not round_.spent and (pending or round_.number == 0):
        return
    subject = (
        "the ledger's lines after the last round" if pending else "its lines of the privacy ledger"
    )
    with findings.checking(subject):
        for placed in round_.spent:
            _check_line(run, placed, round_.number + pending)
        if run.plan.privacy.mechanism != "central":
            _check_sums(run, round_)
        elif not pending:
            _check_central(round_)


def spending(run: Run, findings: Findings) -> Spending | None:
    """What the run's clients have spent; faults where it is more than the plan's budget."""
    if not run.plan.private:
        return None
    privacy = run.plan.privacy
    entries = [placed.leaf.entry for placed in run.log.spent]
    with findings.checking("no sum is in the privacy ledger twice"):
        _check_once(entries)
    totals = Spending(
        mechanism=privacy.mechanism,
        sums=len(entries),
        epsilon=None,
        budget=privacy.epsilon,
        delta=privacy.delta,
    )
    tally, opened = Tally(entries), Tally(_opened(run, entries))
    names = sorted(tally.clients)
    if privacy.mechanism == "central" and entries:
        names.append("")  # every round counts for everybody, also one whose sample was empty
    with findings.checking("nobody took part more often than planned"):
        for name in names:
            times = opened.sums(name)
            if privacy.rounds_per_client and times > privacy.rounds_per_client:
                raise _bad(f"{name} took part in {times} sums, {privacy.rounds_per_client} planned")
    try:
        for placed in run.log.spent:
            _check_line(run, placed, placed.leaf.entry.round)
    except ProofError:
        return totals  # its round says what is wrong; of false numbers there is no epsilon
    try:
        before = run.plan.spent_before
        spent = {name: client_epsilon(tally, name, privacy, before) for name in names}
        sure = {name: client_epsilon(opened, name, privacy, before) for name in names}
    except MachineError as error:
        findings.leave_open(error.cause, "that nobody spent more than the plan's epsilon")
        return totals
    with findings.checking(f"nobody spent more than epsilon {privacy.epsilon:g}"):
        for name, value in sure.items():
            if value > privacy.epsilon:
                raise _bad(f"{name} spent epsilon {value:.3f}, the plan allows {privacy.epsilon:g}")
    return Spending(**{**vars(totals), "epsilon": max(spent.values(), default=0.0)})


def _check_line(run: Run, placed: Placed[Spent], number: int) -> None:
    entry, plan = placed.leaf.entry, run.plan
    where = f"leaf {placed.index} `dp`"
    if placed.subjects != {LEDGER: sha256(canonical_json(entry.model_dump()))}:
        raise _bad(f"{where} is not about its own line")
    central = plan.privacy.mechanism == "central"
    if entry.round != number or not 1 <= number <= plan.rounds:
        raise _bad(f"{where} is of round {entry.round}")
    size = run.recipe.round_layout(number).size
    numbers = (
        central_numbers(plan.privacy, size)
        if central
        else distributed_numbers(mechanism_of(plan, size=size))
    )
    for field, meant in {
        "plan": run.plan_digest,
        "run": "" if central else run.sid.hex(),
        **numbers,
    }.items():
        if getattr(entry, field) != meant:
            raise _bad(f"{where}: `{field}` is not what the plan's noise makes it")
    if entry.participants != sorted(set(entry.participants)):
        raise _bad(f"{where}: a participant is listed twice or out of order")


def _check_sums(run: Run, round_: Round) -> None:
    """Each opened sum has one line, of its very clients; each opened attempt has some."""
    lines = {(e.sequence, e.group, e.round, e.attempt): e for e in _entries(round_)}
    for group_sum in round_.sums:
        if not group_sum.complete:
            continue
        leaf = group_sum.leaves().opened
        alive = group_sum.of(Alive)[0]
        entry = lines.get((group_sum.seq, group_sum.group, leaf.round, leaf.attempt))
        _check_participants(run, group_sum.group, alive.index, alive.leaf.ids, entry)
    for abort in round_.aborts:
        for revealed in abort.leaf.revealed:
            key = (abort.leaf.seq, revealed.group, abort.leaf.round, abort.leaf.attempt)
            _check_participants(run, revealed.group, abort.index, revealed.ids, lines.get(key))


def _check_participants(
    run: Run, group: int, index: int, clients: Sequence[str], entry: Entry | None
) -> None:
    """The line of a sum is there, and of its very clients. ``index`` is of the leaf that names them."""
    if entry is None:
        raise _bad(f"the sum of group {group} was opened and is not in the ledger")
    _, members = run.members(index)
    if entry.participants != sorted(
        members.names.get(bytes.fromhex(client), "?") for client in clients
    ):
        raise _bad(f"the ledger's line of group {group} is of other clients")


def _check_central(round_: Round) -> None:
    lines = [e for e in _entries(round_) if e.round == round_.number]
    if round_.number and not round_.adapter.leaf.void and len(lines) != 1:
        raise _bad(f"{len(lines)} lines for one round")


def _check_once(entries: Sequence[Entry]) -> None:
    keys = set()
    for entry in entries:
        key = (entry.run, entry.sequence, entry.group, entry.round, entry.attempt)
        if key in keys:
            raise _bad(f"a sum of round {entry.round} is listed twice")
        keys.add(key)


def _opened(run: Run, entries: Sequence[Entry]) -> list[Entry]:
    """The lines of sums that were asked for: a coordinator that was killed may have spent in vain."""
    if run.plan.privacy.mechanism == "central":
        return list(entries)
    sums = {
        (group_sum.seq, group_sum.group)
        for round_ in run.log.all_rounds
        for group_sum in round_.sums
        if group_sum.of(Aggregate)
    }
    sums |= {
        (abort.leaf.seq, revealed.group)
        for round_ in run.log.all_rounds
        for abort in round_.aborts
        for revealed in abort.leaf.revealed
    }
    return [entry for entry in entries if (entry.sequence, entry.group) in sums]


def _entries(round_: Round) -> list[Entry]:
    return [placed.leaf.entry for placed in round_.spent]


def _bad(fault: str) -> ProofError:
    return ProofError(fault, REMEDY)
