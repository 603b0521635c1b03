"""The gate before a channel: what is checked of a release, and the signed evidence of it. (P-9.6)

A check that cannot be made has failed. The checks use what an auditor and a device use themselves, so
nothing passes here that is refused there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from audit.log_copy import LogCopy, Trust, read_log
from audit.published import Run
from audit.releases import UNREAD
from audit.sources import Folder
from audit.verify import audit
from delivery.evidence import REMEDY, About, Check
from delivery.releases import Bundle
from delivery.withdrawals import check_withdrawals, load_line, without_folders
from edge_runtime.adapter import read_note
from edge_runtime.backends import open_backend
from edge_runtime.base import read_any_manifest
from protocol.delivery import DEVICE_VERSION, Facts
from protocol.documents import OddError, json_as
from protocol.errors import ArtefactError, DeliveryError, FedgeError
from protocol.manifests import AnyManifest, graphs_digest
from protocol.peft_format import EDGE_FILE, PASSPORT_FILE, RELEASE_FILE, ReleaseNote
from protocol.plan import Plan, plan_from_text
from protocol.transparency.leaf_codec import decode_leaf, sha256
from protocol.transparency.leaves import Evaluation, Release
from protocol.transparency.offline import parse_offline_proof
from protocol.transparency.policy import Policy
from storage.regular import read_regular, read_regular_text, read_settings_text


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What a release has to reach, in thousandths. ``previous`` is the last release's metric.

    Of a metric whose best is 0, ``floor`` is for what it lacks to 1. ``most``: what other metrics, such as
    ``exposure`` and ``membership_auc``, may not be above. ``despite_withdrawal``: it may hold updates
    of a site that withdrew.
    """

    floor: int
    margin: int
    previous: int | None
    most: Mapping[str, int] = field(default_factory=dict)
    despite_withdrawal: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All checks of a release; the bundle is there when every one passed."""

    subjects: dict[str, str]
    checks: tuple[Check, ...]
    bundle: Bundle | None


class _Unproven(BaseModel):
    model_config = ConfigDict(frozen=True)
    what: str
    leaves: str


class _AuditedRound(BaseModel):
    model_config = ConfigDict(frozen=True)
    round: int
    verdict: str
    unverified: list[_Unproven] = []


class _Spending(BaseModel):
    model_config = ConfigDict(frozen=True)
    epsilon: float | None
    budget: float


class Audited(BaseModel):
    """What the gate reads of ``fedge audit verify --json``."""

    model_config = ConfigDict(frozen=True)
    verdict: str
    origin: str
    size: int
    root: str
    rounds: list[_AuditedRound]
    privacy: _Spending | None
    faults: list[str]
    before: Audited | None = None

    @property
    def line(self) -> tuple[Audited, ...]:
        """This report, and those of the runs before that were verified with it, the latest first."""
        return (self, *(() if self.before is None else self.before.line))


def read_audit(path: Path) -> Audited:
    """A saved report. Raises DeliveryError `gate.audit`."""
    try:
        return json_as(Audited, read_regular(path))
    except (OSError, OddError) as error:
        raise DeliveryError(
            "gate.audit",
            f"{path}: not a report of an audit ({type(error).__name__})",
            "`fedge audit verify RUN --json` prints one",
        ) from None


def run_audit(
    run: Path, policy: Policy, before: Sequence[Path] = (), *, base: Path | None = None
) -> Audited:
    """Audit the run, and those ``before`` it, now, as anybody would. Raises what the audit raises.

    ``base``: that of the devices, for methods that hang on weights of it.
    """
    runs = [Folder(earlier) for earlier in before]
    report = audit(Folder(run), Trust(policy=policy), weights=base, before=runs)
    return Audited.model_validate(json.loads(json.dumps(report.to_dict())))


def read_plan(run: Path) -> Plan:
    """The plan of a run. Raises ArtefactError, PlanError."""
    path = run / "plan.json"
    try:
        return plan_from_text(read_settings_text(path), source=str(path))
    except (OSError, UnicodeDecodeError):
        raise ArtefactError(f"{run} is not a run: no plan.json", "name a run folder") from None


@dataclass(frozen=True, kw_only=True)
class _Case:
    """What the checks look at."""

    plan: Plan
    note: ReleaseNote
    manifest: AnyManifest
    copy: LogCopy
    leaf: Release
    index: int
    evaluation: Evaluation | None
    audited: Callable[[], Audited]
    line: Callable[[], tuple[Run, ...]]
    bar: Bar


def examine(
    run: Path,
    number: int,
    about: About,
    *,
    base: Path,
    policy: Policy,
    bar: Bar,
    audited: Callable[[], Audited],
    before: Sequence[Path] = (),
) -> Verdict:
    """Check round ``number`` of ``run`` for a channel; ``before`` are the runs that it goes on from.

    Raises only for a run that cannot be read.
    """
    folder = run / "rounds" / f"{number:04d}" / "adapter"
    files = {name: _bytes(folder / name) for name in (EDGE_FILE, RELEASE_FILE, PASSPORT_FILE)}
    subjects = {name: sha256(data) for name, data in files.items()}
    folders = [run, base, *before]

    @cache  # two checks ask
    def line() -> tuple[Run, ...]:
        return load_line(run, before, Trust(policy=policy))

    try:
        case = _open(run, folder, base, policy, bar, audited, line)
    except FedgeError as error:
        detail = without_folders(error.cause, folders)
        unreadable = Check(name="log", passed=False, detail=detail)
        return Verdict(subjects=subjects, checks=(unreadable,), bundle=None)
    checks = []
    for title, check in (CHECKS | (BOUNDS if bar.most else {})).items():
        try:
            checks.append(Check(name=title, passed=True, detail=check(case)))
        except FedgeError as error:
            detail = without_folders(error.cause, folders)
            checks.append(Check(name=title, passed=False, detail=detail))
    bundle = None
    if all(check.passed for check in checks):
        kinds = {"adapter": EDGE_FILE, "release": RELEASE_FILE, "passport": PASSPORT_FILE}
        content = {kind: files[name] for kind, name in kinds.items()}
        bundle = Bundle(name=about.name, facts=_facts(case, about.seq), files=content)
    return Verdict(subjects=subjects, checks=tuple(checks), bundle=bundle)


def least_device(note: ReleaseNote) -> int:
    """The version of devices that read this ``release.json``. (P-9.4)"""
    return DEVICE_VERSION if note.nested else DEVICE_VERSION - 1


def _facts(case: _Case, seq: int) -> Facts:
    privacy = case.audited().privacy
    spent = privacy.epsilon if privacy is not None else None
    return Facts(
        plan=case.plan.name,
        round=case.note.round,
        seq=seq,
        log_origin=case.copy.checkpoint.origin,
        log_index=case.index,
        base=case.note.base_fingerprint,
        graph=graphs_digest(case.manifest),
        device_min=least_device(case.note),
        epsilon_milli=None if spent is None else math.ceil(1000 * spent),
        metrics=case.evaluation.metrics if case.evaluation else {},
    )


def _open(
    run: Path,
    folder: Path,
    base: Path,
    policy: Policy,
    bar: Bar,
    audited: Callable[[], Audited],
    line: Callable[[], tuple[Run, ...]],
) -> _Case:
    plan = read_plan(run)
    note, manifest = _device_checks(folder, base, policy)
    proof = parse_offline_proof(read_regular_text(folder / PASSPORT_FILE))
    copy = read_log(Folder(run), Trust(policy=policy))
    leaves = dict(enumerate(copy.entries))
    leaf = decode_leaf(leaves.get(proof.index, b"")).leaf
    if not isinstance(leaf, Release):
        raise _failed("the passport's leaf is not the one in the run's own log")
    evaluation = None if leaf.eval is None else decode_leaf(leaves.get(leaf.eval, b"")).leaf
    return _Case(
        plan=plan,
        note=note,
        manifest=manifest,
        copy=copy,
        leaf=leaf,
        index=proof.index,
        evaluation=evaluation if isinstance(evaluation, Evaluation) else None,
        audited=audited,
        line=line,
        bar=bar,
    )


def _device_checks(folder: Path, base: Path, policy: Policy) -> tuple[ReleaseNote, AnyManifest]:
    """The device's own, passport included. Raises ArtefactError, ProofError."""
    open_backend(base, threads=1).load(folder, policy)
    return read_note(folder), read_any_manifest(base)


# -- checks: what they found, or an error ---------------------------------------------------------


def _check_device(case: _Case) -> str:
    """Made by opening the case."""
    return f"loads on base {case.note.base_fingerprint[:12]} with a passport of leaf {case.index}"


def _check_parity(case: _Case) -> str:
    bound, parity = case.plan.release.parity_max_relative, case.note.parity
    if parity is None or not parity.meets(case.plan):
        measured = "none" if parity is None else f"{parity.max_relative:.2e}"
        raise _failed(f"parity {measured}, the plan's bound is {bound:.0e}")
    return f"{parity.max_relative:.2e} of {bound:.0e} on {parity.rows} rows"


def _check_quality(case: _Case) -> str:
    leaf, bar, quality = case.evaluation, case.bar, case.plan.task.QUALITY
    metric = quality.name
    if leaf is None or metric not in leaf.metrics or leaf.round != case.leaf.round:
        raise _failed(f"no `eval` leaf with {metric} belongs to the release")
    value = leaf.metrics[metric]
    sign, least = 1 if quality.higher_is_better else -1, quality.bound(bar.floor)
    if sign * (value - least) < 0:
        bound = "floor" if quality.higher_is_better else "most"
        raise _failed(f"{metric} {value} thousandths, the {bound} is {least}")
    if bar.previous is not None and sign * (value - bar.previous) < -bar.margin:
        raise _failed(
            f"{metric} {value} thousandths, the release before has {bar.previous} "
            f"and may be missed by {bar.margin}",
        )
    return f"{metric} {value} thousandths on {leaf.rows} rows, leaf {case.leaf.eval}"


def _check_audit(case: _Case) -> str:
    report = case.audited()
    _verify_about(report, case.copy)
    _verify_compared(case, report)
    before, known = case.plan.start, len(report.line) - 1
    if before is not None and known != len(before.plans):
        raise _failed(
            f"the plan goes on from {before.origin}, the audit knows {known} of the "
            f"{len(before.plans)} runs before: name each, the latest first, with --before RUN"
        )
    if report.verdict != "ok":
        raise _failed(f"its verdict is {report.verdict}: {'; '.join(report.faults)[:200]}")
    for earlier, run in zip(report.line[1:], case.line()[1:], strict=False):
        _verify_about(earlier, run.copy)
    verified = {outcome.round for outcome in report.rounds if outcome.verdict in ("ok", "void")}
    missing = sorted(set(range(case.note.round + 1)) - verified)
    if missing:
        raise _failed(f"it does not vouch for round {missing[0]}")
    released = (outcome for outcome in report.rounds if outcome.round == case.note.round)
    for left in (left for outcome in released for left in outcome.unverified):
        if left.leaves == UNREAD:
            raise _failed(f"it leaves open {UNREAD}: {left.what[:200]}")
    return f"verdict ok over {report.size} leaves, root {report.root[:16]}"


def _verify_compared(case: _Case, report: Audited) -> None:
    """An audit compares what the last release of a round runs: that is this one. Raises ArtefactError."""
    if report.size <= max(case.leaf.adapter, case.index):
        raise _failed(f"it covers {report.size} leaves, not the release, leaf {case.index}")
    for index in range(case.index + 1, report.size):
        later = decode_leaf(case.copy.entries[index])
        if not isinstance(later.leaf, Release) or later.leaf.round != case.leaf.round:
            continue
        if later.subjects != decode_leaf(case.copy.entries[case.index]).subjects:
            raise _failed(
                f"it compared leaf {index}, which replaced this release, leaf {case.index}"
            )


def _verify_about(report: Audited, copy: LogCopy) -> None:
    """The report is of this log, or of its beginning, and the log has the rest. Raises ArtefactError."""
    if report.origin != copy.checkpoint.origin:
        raise _failed(f"the report is about {report.origin}")
    if report.size > copy.checkpoint.size:
        raise _failed(f"it covers {report.size} leaves, the log here has {copy.checkpoint.size}")
    if copy.tree.root(report.size).hex() != report.root:
        raise _failed("it is about another tree than the run's log")


def _check_budget(case: _Case) -> str:
    if not case.plan.private:
        return "the plan adds no privacy noise"
    spent = case.audited().privacy
    if spent is None or spent.epsilon is None or not spent.epsilon <= spent.budget:
        raise _failed("the audit did not recompute an epsilon within the budget")
    return f"epsilon {spent.epsilon:.3f} of {spent.budget:g}"


def _check_withdrawals(case: _Case) -> str:
    despite = case.bar.despite_withdrawal
    return check_withdrawals(case.line(), case.note.round, despite=despite)


def _check_bounds(case: _Case) -> str:
    leaf, bounds = case.evaluation, case.bar.most
    for name, most in sorted(bounds.items()):
        value = None if leaf is None else leaf.metrics.get(name)
        if value is None:
            raise _failed(f"no `eval` leaf with {name} belongs to the release")
        if value > most:
            raise _failed(f"{name} {value} thousandths, the most is {most}")
    return ", ".join(f"{name} at most {most}" for name, most in sorted(bounds.items()))


BOUNDS: dict[str, Callable[[_Case], str]] = {"bounds": _check_bounds}
CHECKS: dict[str, Callable[[_Case], str]] = {
    "device": _check_device,
    "parity": _check_parity,
    "quality": _check_quality,
    "audit": _check_audit,
    "budget": _check_budget,
    "withdrawals": _check_withdrawals,
}


def _failed(detail: str) -> ArtefactError:
    return ArtefactError(detail, REMEDY)


def _bytes(path: Path) -> bytes:
    try:
        return read_regular(path, most=2**30)
    except OSError:
        raise DeliveryError(
            "gate.release", f"{path} is missing", "release the round first: `fedge release RUN`"
        ) from None
