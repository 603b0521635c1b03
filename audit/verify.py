"""A whole run: log, documents, every round, the privacy ledger. (P-8.16)

What is wrong with the log itself (its key, checkpoint, tree, growth) or with the plan ends the audit with
one error; everything else becomes a finding of its round, and the audit goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from audit.base import check_base
from audit.beside import check_beside
from audit.budget import check_ledger_of, spending
from audit.claims import list_claims
from audit.collected import Fault, Placed
from audit.complaints import check_complaint
from audit.continued import check_before, unchecked_start
from audit.coverage import Watched, batch_bytes
from audit.log_copy import Trust, batch_path, parse_batch, read_log
from audit.openings import check_openings
from audit.order import collect, parse_first
from audit.published import PLAN, POLICY, REMEDY, Run, checkpoint_path, open_run, read_plan
from audit.repeats import repeats
from audit.report import Findings, Report, RoundVerdict, Spending, Unproven
from audit.rounds import RoundCheck
from audit.seeds import both_seeds
from audit.sources import Source, fetch_list
from audit.sums import Effort
from audit.weights import linears_at
from audit.withdrawals import check_withdrawals, withdrawn
from protocol.errors import FedgeError, MachineError, ProofError
from protocol.legality import verify_legal
from protocol.manifest import MANIFEST_NAME
from protocol.merkle import merkle_root
from protocol.transparency.dsse import key_id
from protocol.transparency.leaves import Evaluation, Release
from protocol.transparency.lists import Lists
from protocol.transparency.note import parse_key

Progress = Callable[[str, int, int], None]
ALL = Effort()


def load_run(source: Source, trust: Trust) -> Run:
    """Log and documents, without any round. Raises ProofError, ArtefactError, PlanError."""
    source = Watched(source)
    copy = read_log(source, trust)
    first = parse_first(copy.entries, copy.key.public)
    plan = read_plan(source, first)
    if first.leaf.origin != copy.checkpoint.origin:
        raise ProofError("leaf 0 is of another log than the checkpoint", REMEDY)
    lists = Lists(partial(fetch_list, source))
    collected = collect(
        copy.entries, log_key=copy.key.public, witnessed=plan.witnessed, lists=lists
    )
    return open_run(source, copy, collected, lists)


def audit(
    source: Source,
    trust: Trust,
    *,
    only: int | None = None,
    effort: Effort = ALL,
    base: Path | None = None,
    weights: Path | None = None,
    before: Sequence[Source] = (),
    progress: Progress = lambda task, completed, total: None,
) -> Report:
    """Verify a run. ``only`` names the one round whose sums and files are checked, ``base`` an own base.

    ``weights``: a base, of a graph of its own maybe, that is looked at only where what devices run hangs on
    weights; without it ``base`` is.

    ``before`` are the runs that it goes on from, the latest first; all of them are verified. Without them
    the verdict of such a run is no ``ok``.

    Raises ProofError, ArtefactError, PlanError when there is nothing to go on with.
    """
    run = load_run(source, trust)
    if (folder := weights or base) is not None:
        run.linears = linears_at(folder, run.manifest)
    rounds = run.log.rounds
    numbers = [round_.number for round_ in rounds]
    if only is not None and only not in numbers:
        raise ProofError(f"the log has no round {only}", f"it has 0 to {len(rounds) - 1}")
    faults = [*run.log.faults, *both_seeds(run)]
    findings = Findings()
    _check_run(run, base, findings)
    earlier = None
    if before:
        check_before(run, [load_run(other, Trust()) for other in before], findings)
        earlier = audit(
            before[0],
            Trust(),
            effort=effort,
            weights=weights or base,
            before=before[1:],
            progress=progress,
        )
    else:
        findings.unverified += unchecked_start(run)
    places = [place for place, round_ in enumerate(rounds) if only in (None, round_.number)]
    alone = earlier is None
    verdicts = _check_rounds(run, places, faults, effort=effort, alone=alone, progress=progress)
    spent = _check_after(run, findings)
    _list_uncovered(run, base, skipped=[n for n in numbers if only not in (None, n)])
    audited = {verdict.round for verdict in verdicts}
    findings.faults += [_named(fault) for fault in faults if fault.round not in audited]
    return replace(_report(run, trust, verdicts, findings, spent), before=earlier)


def _check_run(run: Run, base: Path | None, findings: Findings) -> None:
    """What comes before any round: the plan, the key, leaves of no round, the base, the attempts' numbers."""
    _check_legal(run, findings)
    size = run.copy.checkpoint.size
    findings.verified.append(f"the log's {size} leaves, its tree and its signature")
    _check_key(run)
    _check_loose(run, findings)
    _check_audits(run, findings)
    _check_repeats(run, findings)
    if base is not None:
        with findings.checking("the manifest is that of the auditor's own base"):
            check_base(run, base)
    if run.plan.secrecy.exchange == "secagg":
        with findings.checking("every attempt ended in sums or an `abort`"):
            _check_numbers(run)
        check_openings(run, findings)


def _check_rounds(
    run: Run,
    places: Sequence[int],
    faults: Sequence[Fault],
    *,
    effort: Effort,
    alone: bool,
    progress: Progress,
) -> list[RoundVerdict]:
    """Verdicts of the log's rounds at ``places``, each with those of ``faults`` that are its own."""
    by_round: dict[int | None, list[str]] = {}
    for fault in faults:
        by_round.setdefault(fault.round, []).append(fault.what)
    incoming = [None, *(round_.adapter for round_ in run.log.rounds)]
    verdicts: list[RoundVerdict] = []
    for place in places:
        progress("rounds", len(verdicts), len(places))
        round_ = run.log.rounds[place]
        check = RoundCheck(run, round_, incoming[place], effort, alone=alone)
        check_ledger_of(run, round_, check.findings)
        verdicts.append(check.verdict(by_round.get(round_.number, [])))
    progress("rounds", len(places), len(places))
    return verdicts


def _check_after(run: Run, findings: Findings) -> Spending | None:
    """What comes after the rounds: open attempts, the whole ledger, the log's end, files beside it."""
    if run.log.pending is not None:
        check_ledger_of(run, run.log.pending, findings)
    spent = spending(run, findings)
    _check_end(run, findings)
    check_beside(run, findings)
    return spent


def _report(
    run: Run,
    trust: Trust,
    rounds: list[RoundVerdict],
    findings: Findings,
    spent: Spending | None,
) -> Report:
    copy = run.copy
    return Report(
        note=copy.note,
        origin=copy.checkpoint.origin,
        plan=run.plan_digest,
        base=run.manifest.fingerprint,
        program=run.plan.base.program,
        size=copy.checkpoint.size,
        root=copy.checkpoint.root.hex(),
        rounds=tuple(rounds),
        planned=run.plan.rounds,
        goes_on=run.plan.start is not None,
        from_round=0 if run.plan.start is None else run.plan.start.round,
        privacy=spent,
        verified=tuple(findings.verified),
        unverified=tuple(findings.unverified),
        faults=tuple(findings.faults),
        assumed=tuple(_assumed(run, trust)),
        audits=tuple(
            f"leaf {placed.index}: {key_id(bytes.fromhex(placed.leaf.auditor))} found the first "
            f"{placed.leaf.size} leaves {placed.leaf.verdict}"
            for placed in run.log.audits
        ),
        complaints=tuple(
            f"leaf {placed.index}: {placed.leaf.client} about {placed.leaf.about!r}"
            for placed in run.log.complaints
        ),
        withdrawals=withdrawn(run),
        not_covered=run.coverage.rest(run.source),
    )


def _list_uncovered(run: Run, base: Path | None, *, skipped: list[int]) -> None:
    """The claims that rest on somebody's word; who signed what nobody asked; rounds that were left out."""
    list_claims(run, base=base is not None)
    coverage, source, copy = run.coverage, run.source, run.copy
    for number in skipped:
        coverage.leave(
            f"round {number}", "this audit was of another round: its leaves were not checked"
        )
    coverage.spelled("log/key", source.read("log/key"), f"{copy.key.encode()}\n".encode())
    if copy.tiled:
        note = source.read("log/checkpoint").decode(errors="replace")
        coverage.signed_by_others("log/checkpoint", note, run.signers)
    for name in copy.batches:
        data = source.read(name)
        start, entries, note = parse_batch(data, name)
        coverage.spelled(name, data, batch_bytes(start, entries, note))
        coverage.signed_by_others(name, note, run.signers)
    plan, manifest = source.read(PLAN), source.read(MANIFEST_NAME)
    coverage.spelled(PLAN, plan, run.plan.render().encode())
    coverage.spelled(MANIFEST_NAME, manifest, run.manifest.to_json().encode())


def _check_repeats(run: Run, findings: Findings) -> None:
    for fault in repeats(run):
        findings.fault(fault)


def _changes_of_roster(run: Run) -> Iterator[Unproven]:
    """Who came and went: an operator may, and everybody should see it."""
    indices = [roster.index for roster in run.log.rosters]
    for before, after in pairwise(indices):
        try:
            old, new = (run.members(index + 1)[1].names for index in (before, after))
        except FedgeError:
            continue  # a fault, and said already
        arrived = sorted(new[key] for key in new.keys() - old.keys())
        departed = sorted(old[key] for key in old.keys() - new.keys())
        renamed = sorted(old[key] for key in old.keys() & new.keys() if old[key] != new[key])
        changes = [
            f"{len(names)} {did} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
            for did, names in (("came", arrived), ("left", departed), ("are named anew", renamed))
            if names
        ]
        yield Unproven(
            what=f"leaf {after} `roster`: {'; '.join(changes) or 'nobody came or left'}",
            leaves="that each key of a roster is of a client of its own",
        )


def _named(fault: Fault) -> str:
    return fault.what if fault.round is None else f"round {fault.round}: {fault.what}"


def _assumed(run: Run, trust: Trust) -> list[Unproven]:
    """What rests on something outside this copy."""
    assumptions = list(_changes_of_roster(run))
    if trust.key is None and trust.policy is None and not run.plan.audit.log:
        assumptions.append(
            Unproven(
                what="the log's key came from the run itself",
                leaves="that it is the coordinator's: pin it with --log-key or --policy",
            )
        )
    if trust.policy is not None:
        return assumptions
    if not run.plan.witnessed:
        nobody = Unproven(
            what="the plan names no witnesses",
            leaves="that everybody is shown this very log, and not another",
        )
        return [*assumptions, nobody]
    try:
        run.policy.verify_checkpoint(run.copy.note)
    except ProofError as error:
        newest = Unproven(
            what=f"the newest checkpoint: {error.cause}",
            leaves="that everybody is shown these last leaves; an alive set was witnessed before "
            "clients opened its sum",
        )
        assumptions.append(newest)
    return assumptions


def _check_legal(run: Run, findings: Findings) -> None:
    """Nothing is derived from a plan that may not be run. Raises PlanError."""
    try:
        verify_legal(run.plan, run.manifest)
    except MachineError as error:
        findings.leave_open(error.cause, "that the plan's own budget allows its rounds")


def _check_key(run: Run) -> None:
    """A plan with witnesses names the log's key. Raises ProofError."""
    if run.plan.audit.log and run.copy.key != parse_key(run.plan.audit.log):
        raise ProofError("the log's key is not the one that the plan names", REMEDY)


# -- leaves that belong to no round ---------------------------------------------------------------


def _check_loose(run: Run, findings: Findings) -> None:
    """Rosters, complaints, retention, audits: each against what it speaks about."""
    log = run.log
    with findings.checking("log/policy"):
        _check_policy(run)
    for roster in log.rosters:
        with findings.checking(f"leaf {roster.index} `roster`"):
            run.members(roster.index + 1)
    for complaint in log.complaints:
        with findings.checking(f"leaf {complaint.index} `complaint`"):
            check_complaint(run, complaint)
    check_withdrawals(run, findings)
    for retention in log.retentions:
        with findings.checking(f"leaf {retention.index} `retention`"):
            _check_retention(run, retention.leaf.round, retention.leaf.vectors, retention.subjects)
    adapters = {round_.number for round_ in log.rounds}
    later: list[Placed[Release] | Placed[Evaluation]] = [*log.releases, *log.evaluations]
    for placed in later:
        if isinstance(placed.leaf, Evaluation) and set(placed.subjects) != {"rows"}:
            findings.fault(f"leaf {placed.index} `eval` is not about its rows alone")
        if placed.leaf.round not in adapters:
            findings.fault(
                f"leaf {placed.index} `{placed.leaf.kind}` of round {placed.leaf.round}, which is not there"
            )
    for round_ in log.all_rounds:
        for abort in round_.aborts:
            if abort.subjects != {"plan": run.plan_digest}:
                findings.fault(f"leaf {abort.index} `abort` is not about this plan")


def _check_numbers(run: Run) -> None:
    """(P-8.8) No attempt is missing, so none was opened and hidden; none is told twice."""
    numbers = []
    for round_ in run.log.all_rounds:
        numbers += [
            (abort.leaf.seq, round_.number) for abort in round_.aborts if abort.leaf.group is None
        ]
        if round_ is not run.log.pending and round_.number and not round_.adapter.leaf.void:
            numbers.append((round_.adapter.leaf.seq, round_.number))
    for expected, (seq, number) in enumerate(numbers, start=1):
        if seq != expected:
            raise ProofError(
                f"round {number}: attempt {seq} where attempt {expected} has to be told", REMEDY
            )


def _check_policy(run: Run) -> None:
    """What the run offers devices and auditors to pin is its own key and its plan's witnesses."""
    if run.source.read(POLICY) != run.policy.render().encode():
        raise ProofError("it is not of this log's key and its plan's witnesses", REMEDY)


def _check_retention(run: Run, number: int, count: int, subjects: dict[str, str]) -> None:
    rounds = [round_ for round_ in run.log.rounds if round_.number == number]
    roots = [
        bytes.fromhex(leaf.root)
        for round_ in rounds
        for group_sum in sorted(round_.sums, key=lambda summed: summed.group)
        if group_sum.complete
        for leaf in group_sum.leaves().vectors
    ]
    if count != len(roots) or subjects != {"vectors": merkle_root(roots).hex()}:
        raise ProofError(f"it is not about the vectors of round {number}", REMEDY)


def _check_audits(run: Run, findings: Findings) -> None:
    for placed in run.log.audits:
        with findings.checking(f"leaf {placed.index} `audit`"):
            size = placed.leaf.size
            if size > placed.index or placed.subjects != {"log": run.copy.tree.root(size).hex()}:
                raise ProofError(f"it is not about this log's first {size} leaves", REMEDY)


def _check_end(run: Run, findings: Findings) -> None:
    """What lies behind the log's last round is not hidden from it."""
    newest = run.log.rounds[-1].number
    with findings.checking("no round is hidden from the log"):
        if run.source.exists(checkpoint_path(newest + 1)) and not _goes_on(run, newest + 1):
            raise ProofError(f"round {newest + 1} is published, but not in the log", REMEDY)
    pending = run.log.pending
    if pending is not None and pending.sums:
        findings.fault(
            f"a sum was opened after round {newest}, and no adapter says what became of it"
        )


def _goes_on(run: Run, number: int) -> bool:
    """The round was published while this audit read: its leaves wait, or the log has grown."""
    if run.source.exists(batch_path(number)):
        return True
    return run.source.read("log/checkpoint") != run.copy.note.encode()
