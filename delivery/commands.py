"""``fedge deploy``: a repository of releases for devices, on any static file server. (P-9)"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.delivery import CANARY, STABLE, release_name
from protocol.errors import ArtefactError, DeliveryError, PlanError

if TYPE_CHECKING:
    from delivery.evidence import About, Check
    from delivery.gate import Bar, Verdict
    from delivery.keys import KeyRing
    from delivery.repository import Repository
    from protocol.delivery import Offer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Deliver releases to devices: a signed repository.",
)
Repo = Annotated[Path, typer.Argument(metavar="REPO", help="the repository's folder")]
RepoOption = Annotated[Path, typer.Option("--repo", help="the repository's folder")]
Keys = Annotated[list[Path], typer.Option("--keys", help="folder with keys; may be given again")]
Reports = Annotated[
    Path | None, typer.Option("--reports", help="folder where devices' reports are collected")
]
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]
ReleaseArgument = Annotated[str, typer.Argument(metavar="RELEASE", help="such as home-r0007")]


@app.command()
def init(
    repo: Repo,
    keys: Annotated[Path, typer.Option("--keys", help="folder for the new keys; not inside REPO")],
    as_json: Json = False,
) -> None:
    """Make keys and an empty repository: 2-of-3 root and targets, channels canary and stable."""
    from delivery.keys import ROLES, make_keys, read_keys
    from delivery.repository import FIRST_ROOT, create_repository

    _check_apart(keys, repo)
    make_keys(keys, dict.fromkeys(name for seats in ROLES.values() for name in seats.names))
    create_repository(repo, read_keys([keys]), _now())
    offline = [name for role in ("root", "targets") for name in ROLES[role].names]
    if as_json:
        _print_json(
            {"repository": str(repo), "root": str(repo / FIRST_ROOT), "offline_keys": offline}
        )
        return
    typer.echo(f"{repo}: serve it as it is; a device's image carries {repo / FIRST_ROOT}")
    typer.echo(
        f"{keys}: take {', '.join(offline)} away, to different people; stable-1 and stable-2"
    )
    typer.echo("belong to those who promote; gate, snapshot and timestamp stay with the publisher")


Floor = Annotated[
    float,
    typer.Option(
        "--floor",
        min=0,
        max=1,
        help="least accuracy; of numbers, most NRMSE is 1 less this; of texts, most perplexity 1 over this",
    ),
]
Margin = Annotated[
    float, typer.Option("--margin", min=0, max=1, help="may be worse than the release before by")
]
Most = Annotated[
    list[str] | None,
    typer.Option("--most", metavar="METRIC=VALUE", help="bound of another one; again for more"),
]
Audit = Annotated[
    Path | None, typer.Option("--audit", help="a saved `fedge audit verify RUN --json`")
]
Before = Annotated[
    list[Path] | None,
    typer.Option("--before", help="the run this one goes on from; again for the one before it"),
]

Despite = Annotated[
    bool,
    typer.Option("--despite-withdrawal", help="also what holds updates of a site that withdrew"),
]


@app.command()
def publish(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    repo: RepoOption,
    keys: Keys,
    base: Annotated[Path, typer.Option("--base", help="the base that devices have")],
    floor: Floor,
    margin: Margin = 0.01,
    most: Most = None,
    channel: Annotated[
        str, typer.Option("--channel", help="canary; stable is promoted to")
    ] = CANARY,
    name: Annotated[str, typer.Option("--name", help="without it the plan's")] = "",
    round_number: Annotated[
        int | None, typer.Option("--round", help="the last released one without it")
    ] = None,
    trust: Annotated[
        Path | None, typer.Option("--trust", help="the log's policy; without it the run's own")
    ] = None,
    audit: Audit = None,
    before: Before = None,
    rollout: Annotated[int, typer.Option("--rollout", min=0, max=1000, help="permille")] = 1000,
    despite_withdrawal: Despite = False,
    as_json: Json = False,
) -> None:
    """Put a released round through the gate and offer it to the canaries.

    The gate: the device's own checks, parity, accuracy in the log, an audit of the run (made now, without
    --audit), the privacy budget, no update of a site that withdrew. A check that cannot be made has failed. A
    release whose evidence a former gate's key has signed, before `rotate`, is checked again and signed anew.
    """
    if channel != CANARY:
        raise PlanError(f"nothing is published to {channel}", "publish to canary, then promote")
    if audit and before:
        raise PlanError(
            "--before is for an audit made now", "save one with it: `fedge audit verify --before`"
        )
    number, name = _round(run, round_number), _delivery_name(run, name)
    repository, ring = _open(repo), _ring(keys)
    with repository.locked():
        bar = replace(
            _bar(repository, name, run, floor, margin),
            most=_bounds(most or []),
            despite_withdrawal=despite_withdrawal,
        )

        def verdict(about: About) -> Verdict:
            return _verdict(run, number, about, base, bar, trust, audit, before or [])

        offer, checks = _offer(repository, ring, name, run, number, verdict, rollout)
    document = {
        "release": release_name(name, offer.seq),
        "id": offer.id,
        "channel": CANARY,
        "checks": {check.name: check.detail for check in checks},
    }
    _print(document, f"{document['release']} is on offer to the canaries", as_json)


def _offer(
    repository: Repository,
    ring: KeyRing,
    name: str,
    run: Path,
    number: int,
    verdict: Callable[[About], Verdict],
    rollout: int,
) -> tuple[Offer, Sequence[Check]]:
    """A round on offer to the canaries by its verdict; one that is there has its evidence signed anew."""
    from delivery import releases
    from delivery.evidence import About, decide, signed_before, write_evidence

    now = _now()
    former = signed_before(repository, name, run, number)
    seq = former.seq if former else releases.next_seq(repository, name)
    about = About(name=name, seq=seq, channel=CANARY)
    examined = verdict(about)
    statement = decide(repository, ring, about, examined.subjects, examined.checks, now)
    assert examined.bundle is not None
    if former:
        write_evidence(repository, statement)
        return former, examined.checks
    offer = releases.publish(
        repository, examined.bundle, ring, now, rollout_permille=rollout, evidence=statement
    )
    return offer, examined.checks


@app.command()
def promote(
    release: ReleaseArgument,
    repo: RepoOption,
    keys: Keys,
    rollout: Annotated[int, typer.Option("--rollout", min=1, max=1000, help="permille")] = 1000,
    reports: Reports = None,
    as_json: Json = False,
) -> None:
    """Sign the canaries' bytes for `stable`, or widen the rollout there. Two keys of three."""
    from delivery import releases
    from delivery.evidence import About, decide, passed_before

    name, seq = _parsed(release)
    repository, ring, now = _open(repo), _ring(keys), _now()
    with repository.locked():
        offer = releases.find(repository, CANARY, name, seq)
        checks = [passed_before(repository, name, offer), _check_devices(offer, reports)]
        files = offer.files.model_dump().values()
        subjects = {file["name"]: file["sha256"] for file in files}
        about = About(name=name, seq=seq, channel=STABLE)
        statement = decide(repository, ring, about, subjects, checks, now)
        releases.promote(
            repository, name, seq, ring, now, rollout_permille=rollout, evidence=statement
        )
    document = {"release": release, "channel": STABLE, "rollout_permille": rollout}
    _print(document, f"{release} is on offer in stable, for {rollout} of 1000 devices", as_json)


def _check_devices(offer: Offer, reports: Path | None) -> Check:
    """Whether a device failed on the offer, or left a report that nobody can read."""
    from delivery.evidence import Check
    from delivery.status import faults_of, read_reports

    readable, unreadable = read_reports(reports) if reports else ([], [])
    failed = faults_of(readable, offer.id)
    running = sum(
        report.current is not None and report.current.release == offer.id for report in readable
    )
    detail = f"{len(readable)} reported, {running} run it, "
    detail += f"failed on: {', '.join(sorted(failed)) or 'none'}"
    detail += f"; no report: {', '.join(unreadable)}" if unreadable else ""
    return Check(name="devices", passed=not failed and not unreadable, detail=detail)


@app.command()
def revoke(
    release: ReleaseArgument,
    repo: RepoOption,
    keys: Keys,
    reason: Annotated[str, typer.Option("--reason", help="for devices' reports")],
    as_json: Json = False,
) -> None:
    """Withdraw a release: devices that run it go back to the one before."""
    from delivery import releases

    name, seq = _parsed(release)
    repository, ring = _open(repo), _ring(keys)
    with repository.locked():
        channels = releases.revoke(repository, name, seq, reason, ring, _now())
    document = {"release": release, "revoked_in": channels}
    _print(document, f"{release} is withdrawn from {', '.join(channels)}", as_json)


@app.command()
def refresh(repo: Repo, keys: Keys, as_json: Json = False) -> None:
    """Sign the timestamp again, which expires in a day, and what has lived half its life."""
    repository, ring = _open(repo), _ring(keys)
    with repository.locked():
        short = repository.refresh(ring, _now())
    if as_json:
        _print_json({"refreshed": True, "keys_missing_for": short})
        return
    typer.echo(f"{repo}: signed again")
    for role in short:
        at = repository.roles[role].signed.expires
        typer.echo(f"`{role}` expires {at:%Y-%m-%d} and its keys are not here")


@app.command()
def rotate(
    role: Annotated[list[str], typer.Argument(metavar="ROLE...", help="whose keys to replace")],
    repo: RepoOption,
    keys: Keys,
    new_keys: Annotated[Path, typer.Option("--new-keys", help="folder for the new keys")],
    as_json: Json = False,
) -> None:
    """Replace a role's keys by new ones. `snapshot timestamp` together also undo pushed-up versions."""
    from delivery.keys import ROLES, make_keys, read_keys
    from delivery.rotation import check_roles, rotate

    check_roles(role)
    _check_apart(new_keys, repo)
    repository, ring = _open(repo), _ring(keys)
    names = [name for title in role for name in ROLES[title].names]
    make_keys(new_keys, dict.fromkeys(names))
    with repository.locked():
        rotate(repository, role, ring, read_keys([new_keys]), _now())
    version = repository.root.version
    document = {"roles": role, "root_version": version}
    _print(document, f"{', '.join(role)}: new keys in {new_keys}; root version {version}", as_json)


@app.command()
def status(repo: Repo, reports: Reports = None, as_json: Json = False) -> None:
    """What is on offer, with what evidence; which devices run it and where it failed."""
    from delivery.status import gather, read_reports
    from delivery.tables import print_status

    readable, unreadable = read_reports(reports) if reports else ([], [])
    overview = gather(_open(repo), readable, _now()) | {"unreadable_reports": unreadable}
    _print_json(overview) if as_json else print_status(overview)


def _check_apart(keys: Path, repo: Path) -> None:
    if keys.resolve().is_relative_to(repo.resolve()):
        raise DeliveryError(
            "keys.folder", f"{keys} lies inside the repository", "name a folder that is not served"
        )


def _open(repo: Path) -> Repository:
    from delivery.repository import Repository

    return Repository(repo)


def _ring(keys: list[Path]) -> KeyRing:
    from delivery.keys import read_keys

    return read_keys(keys)


def _bar(repository: Repository, name: str, run: Path, floor: float, margin: float) -> Bar:
    """What the release has to reach, given the newest one that canaries have."""
    from delivery import releases
    from delivery.gate import Bar, read_plan

    offers = releases.read_current(repository, CANARY, name).releases
    metrics = releases.read_facts(repository, CANARY, offers[0]).metrics if offers else {}
    previous = metrics.get(read_plan(run).task.QUALITY.name)
    return Bar(floor=round(1000 * floor), margin=round(1000 * margin), previous=previous)


def _bounds(options: list[str]) -> dict[str, int]:
    """Thousandths by metric. Raises PlanError."""
    bounds: dict[str, int] = {}
    for option in options:
        name, _, text = option.partition("=")
        try:
            value = float(text)
            bounds[name] = round(1000 * value)
        except (ValueError, OverflowError):
            raise PlanError(
                f"--most {option[:80]}: this is no METRIC=VALUE", "--most exposure=2"
            ) from None
        if not name or value < 0:
            raise PlanError(f"--most {option[:80]}: this is no METRIC=VALUE", "--most exposure=2")
    return bounds


def _verdict(
    run: Path,
    number: int,
    about: About,
    base: Path,
    bar: Bar,
    trust: Path | None,
    audit: Path | None,
    before: list[Path],
) -> Verdict:
    from delivery.gate import Audited, examine, read_audit, run_audit
    from edge_runtime.passport import read_policy

    policy = read_policy(trust or run / "log" / "policy")

    @cache  # several checks ask
    def audited() -> Audited:
        return read_audit(audit) if audit else run_audit(run, policy, before)

    return examine(run, number, about, base=base, policy=policy, bar=bar, audited=audited)


def _round(run: Path, number: int | None) -> int:
    from protocol.peft_format import PASSPORT_FILE

    folders = [path.parent.parent for path in run.glob(f"rounds/*/adapter/{PASSPORT_FILE}")]
    released = sorted(int(folder.name) for folder in folders if folder.name.isdecimal())
    if number is None and released:
        return released[-1]
    if number not in released:
        raise ArtefactError(
            f"{run} has no released round{'' if number is None else f' {number}'}",
            "`fedge release RUN` makes a round ready for devices",
        )
    return number


def _delivery_name(run: Path, name: str) -> str:
    from delivery.gate import read_plan

    name = name or read_plan(run).name.lower()
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise PlanError(f"{name[:80]!r} is no name for delivery", "use a-z, 0-9, `.`, `_`, `-`")
    return name


def _parsed(release: str) -> tuple[str, int]:
    match = re.fullmatch(r"([a-z0-9][a-z0-9._-]{0,63})-r([0-9]{4,9})", release)
    if not match:
        raise PlanError(f"{release[:80]!r} is not a release's name", "such as home-r0001")
    return match[1], int(match[2])


def _now() -> datetime:
    return datetime.now(UTC)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1))


def _print(document: Any, line: str, as_json: bool) -> None:
    """The same as JSON and for people."""
    typer.echo(json.dumps(document, indent=1) if as_json else line)
