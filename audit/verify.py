"""A whole run: log, documents, every round, the privacy ledger. (P-8.16)

What is wrong with the log itself (its key, checkpoint, tree, growth) or with the plan ends the audit with
one error; everything else becomes a finding of its round, and the audit goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
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
from audit.sources import Source
from audit.sums import Effort
from protocol.errors import FedgeError, MachineError, ProofError
from protocol.legality import verify_legal
from protocol.manifest import MANIFEST_NAME
from protocol.merkle import merkle_root
from protocol.transparency.dsse import key_id
from protocol.transparency.leaves import Evaluation, Release
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
    collected = collect(copy.entries, log_key=copy.key.public, witnessed=plan.witnessed)
    return open_run(source, copy, collected)


def audit(
    source: Source,
    trust: Trust,
    *,
    only: int | None = None,
    effort: Effort = ALL,
    base: Path | None = None,
    before: Sequence[Source] = (),
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Verify a run. ``only`` names the one round whose sums and files are checked, ``base`` an own base.

    ``before`` are the runs that it goes on from, the latest first; all of them are verified. Without them
    the verdict of such a run is no ``ok``.

    Raises ProofError, ArtefactError, PlanError when there is nothing to go on with.
    """
    run = load_run(source, trust)
    copy = run.copy
    rounds = run.log.rounds
    if only is not None and only not in [one.number for one in rounds]:
        raise ProofError(f"the log has no round {only}", f"it has 0 to {len(rounds) - 1}")
    faults = [*run.log.faults, *both_seeds(run)]
    findings = Findings()
    _check_legal(run, findings)
    findings.verified.append(f"the log's {copy.checkpoint.size} leaves, its tree and its signature")
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
    earlier = None
    if before:
        check_before(run, [load_run(each, Trust()) for each in before], findings)
        earlier = audit(before[0], Trust(), effort=effort, before=before[1:], progress=progress)
    else:
        findings.unverified += unchecked_start(run)
    by_round: dict[int | None, list[str]] = {}
    for fault in faults:
        by_round.setdefault(fault.round, []).append(fault.what)
    found: list[RoundVerdict] = []
    chosen = [(at, one) for at, one in enumerate(rounds) if only in (None, one.number)]
    for done, (at, one) in enumerate(chosen):
        progress("rounds", done, len(chosen))
        check = RoundCheck(
            run, one, rounds[at - 1].adapter if at else None, effort, alone=earlier is None
        )
        check_ledger_of(run, one, check.findings)
        found.append(check.verdict(by_round.get(one.number, [])))
    progress("rounds", len(chosen), len(chosen))
    if run.log.pending is not None:
        check_ledger_of(run, run.log.pending, findings)
    spent = spending(run, findings)
    _check_end(run, findings)
    check_beside(run, findings)
    _list_uncovered(
        run, base, skipped=[one.number for one in rounds if only not in (None, one.number)]
    )
    told = {one.round for one in found}
    findings.faults += [_named(fault) for fault in faults if fault.round not in told]
    return replace(_report(run, trust, found, findings, spent), before=earlier)


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
        size=copy.checkpoint.size,
        root=copy.checkpoint.root.hex(),
        rounds=tuple(rounds),
        planned=run.plan.rounds,
        goes_on=run.plan.start is not None,
        privacy=spent,
        verified=tuple(findings.verified),
        unverified=tuple(findings.unverified),
        faults=tuple(findings.faults),
        assumed=tuple(_assumed(run, trust)),
        audits=tuple(
            f"leaf {each.index}: {key_id(bytes.fromhex(each.leaf.auditor))} found the first "
            f"{each.leaf.size} leaves {each.leaf.verdict}"
            for each in run.log.audits
        ),
        complaints=tuple(
            f"leaf {each.index}: {each.leaf.client} about {each.leaf.about!r}"
            for each in run.log.complaints
        ),
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
    indices = [each.index for each in run.log.rosters]
    for before, after in pairwise(indices):
        try:
            old, new = (run.members(index + 1)[1].names for index in (before, after))
        except FedgeError:
            continue  # a fault, and said already
        came = sorted(new[one] for one in new.keys() - old.keys())
        left = sorted(old[one] for one in old.keys() - new.keys())
        renamed = sorted(old[one] for one in old.keys() & new.keys() if old[one] != new[one])
        said = [
            f"{len(names)} {did} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
            for did, names in (("came", came), ("left", left), ("are named anew", renamed))
            if names
        ]
        yield Unproven(
            what=f"leaf {after} `roster`: {'; '.join(said) or 'nobody came or left'}",
            leaves="that each key of a roster is of a client of its own",
        )


def _named(fault: Fault) -> str:
    return fault.what if fault.round is None else f"round {fault.round}: {fault.what}"


def _assumed(run: Run, trust: Trust) -> list[Unproven]:
    """What rests on something outside this copy."""
    found = list(_changes_of_roster(run))
    if trust.key is None and trust.policy is None and not run.plan.audit.log:
        found.append(
            Unproven(
                what="the log's key came from the run itself",
                leaves="that it is the coordinator's: pin it with --log-key or --policy",
            )
        )
    if trust.policy is not None:
        return found
    if not run.plan.witnessed:
        nobody = Unproven(
            what="the plan names no witnesses",
            leaves="that everybody is shown this very log, and not another",
        )
        return [*found, nobody]
    try:
        run.policy.verify_checkpoint(run.copy.note)
    except ProofError as error:
        newest = Unproven(
            what=f"the newest checkpoint: {error.cause}",
            leaves="that everybody is shown these last leaves; an alive set was witnessed before "
            "clients opened its sum",
        )
        found.append(newest)
    return found


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
    for retention in log.retentions:
        with findings.checking(f"leaf {retention.index} `retention`"):
            _check_retention(run, retention.leaf.round, retention.leaf.vectors, retention.subjects)
    adapters = {one.number for one in log.rounds}
    later: list[Placed[Release] | Placed[Evaluation]] = [*log.releases, *log.evaluations]
    for each in later:
        if isinstance(each.leaf, Evaluation) and set(each.subjects) != {"rows"}:
            findings.fault(f"leaf {each.index} `eval` is not about its rows alone")
        if each.leaf.round not in adapters:
            findings.fault(
                f"leaf {each.index} `{each.leaf.kind}` of round {each.leaf.round}, which is not there"
            )
    for one in log.all_rounds:
        for abort in one.aborts:
            if abort.subjects != {"plan": run.plan_digest}:
                findings.fault(f"leaf {abort.index} `abort` is not about this plan")


def _check_numbers(run: Run) -> None:
    """(P-8.8) No attempt is missing, so none was opened and hidden; none is told twice."""
    used = []
    for one in run.log.all_rounds:
        used += [(each.leaf.seq, one.number) for each in one.aborts if each.leaf.group is None]
        if one is not run.log.pending and one.number and not one.adapter.leaf.void:
            used.append((one.adapter.leaf.seq, one.number))
    for expected, (seq, number) in enumerate(used, start=1):
        if seq != expected:
            raise ProofError(
                f"round {number}: attempt {seq} where attempt {expected} has to be told", REMEDY
            )


def _check_policy(run: Run) -> None:
    """What the run offers devices and auditors to pin is its own key and its plan's witnesses."""
    if run.source.read(POLICY) != run.policy.render().encode():
        raise ProofError("it is not of this log's key and its plan's witnesses", REMEDY)


def _check_retention(run: Run, number: int, count: int, subjects: dict[str, str]) -> None:
    rounds = [one for one in run.log.rounds if one.number == number]
    roots = [
        bytes.fromhex(leaf.root)
        for one in rounds
        for found in sorted(one.sums, key=lambda each: each.group)
        if found.complete
        for leaf in found.leaves().vectors
    ]
    if count != len(roots) or subjects != {"vectors": merkle_root(roots).hex()}:
        raise ProofError(f"it is not about the vectors of round {number}", REMEDY)


def _check_audits(run: Run, findings: Findings) -> None:
    for each in run.log.audits:
        with findings.checking(f"leaf {each.index} `audit`"):
            size = each.leaf.size
            if size > each.index or each.subjects != {"log": run.copy.tree.root(size).hex()}:
                raise ProofError(f"it is not about this log's first {size} leaves", REMEDY)


def _check_end(run: Run, findings: Findings) -> None:
    """What lies behind the log's last round is not hidden from it."""
    last = run.log.rounds[-1].number
    with findings.checking("no round is hidden from the log"):
        if run.source.exists(checkpoint_path(last + 1)) and not _goes_on(run, last + 1):
            raise ProofError(f"round {last + 1} is published, but not in the log", REMEDY)
    pending = run.log.pending
    if pending is not None and pending.sums:
        findings.fault(
            f"a sum was opened after round {last}, and no adapter says what became of it"
        )


def _goes_on(run: Run, number: int) -> bool:
    """The round was published while this audit read: its leaves wait, or the log has grown."""
    if run.source.exists(batch_path(number)):
        return True
    return run.source.read("log/checkpoint") != run.copy.note.encode()
