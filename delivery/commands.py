"""``fedge deploy``: a repository of releases for devices, on any static file server. (P-9)"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from delivery.command_options import (
    Before,
    Despite,
    Json,
    Keys,
    ReleaseArgument,
    Repo,
    RepoOption,
    Reports,
    key_ring,
    opened,
    print_either,
    print_json,
    utc_now,
)
from delivery.publish_command import publish
from protocol.delivery import CANARY, STABLE
from protocol.errors import DeliveryError, PlanError

if TYPE_CHECKING:
    from delivery.evidence import Check
    from protocol.delivery import Offer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Deliver releases to devices: a signed repository.",
)


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
    create_repository(repo, read_keys([keys]), utc_now())
    offline = [name for role in ("root", "targets") for name in ROLES[role].names]
    if as_json:
        print_json(
            {"repository": str(repo), "root": str(repo / FIRST_ROOT), "offline_keys": offline}
        )
        return
    typer.echo(f"{repo}: serve it as it is; a device's image carries {repo / FIRST_ROOT}")
    typer.echo(
        f"{keys}: take {', '.join(offline)} away, to different people; stable-1 and stable-2"
    )
    typer.echo("belong to those who promote; gate, snapshot and timestamp stay with the publisher")


app.command()(publish)


@app.command()
def promote(
    release: ReleaseArgument,
    repo: RepoOption,
    keys: Keys,
    rollout: Annotated[int, typer.Option("--rollout", min=1, max=1000, help="permille")] = 1000,
    reports: Reports = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="the release's: has a site withdrawn since?")
    ] = None,
    before: Before = None,
    despite_withdrawal: Despite = False,
    as_json: Json = False,
) -> None:
    """Sign the canaries' bytes for `stable`, or widen the rollout there. Two keys of three.

    Refused, as by the gate, for updates of a site that withdrew, maybe since it was published: --run names
    where to look, the run's folder or a bundle of it.
    """
    from delivery import releases
    from delivery.evidence import About, decide, passed_before
    from delivery.withdrawals import promoted

    name, seq = _parsed(release)
    repository, ring, now = opened(repo), key_ring(keys), utc_now()
    with repository.locked():
        offer = releases.find(repository, CANARY, name, seq)
        checks = [
            passed_before(repository, name, offer),
            _check_devices(offer, reports),
            promoted(repository, offer, run, before or [], despite=despite_withdrawal),
        ]
        files = offer.files.model_dump().values()
        subjects = {file["name"]: file["sha256"] for file in files}
        about = About(name=name, seq=seq, channel=STABLE)
        statement = decide(repository, ring, about, subjects, checks, now)
        releases.promote(
            repository, name, seq, ring, now, rollout_permille=rollout, evidence=statement
        )
    document = {"release": release, "channel": STABLE, "rollout_permille": rollout}
    print_either(
        document, f"{release} is on offer in stable, for {rollout} of 1000 devices", as_json
    )


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
    repository, ring = opened(repo), key_ring(keys)
    with repository.locked():
        channels = releases.revoke(repository, name, seq, reason, ring, utc_now())
    document = {"release": release, "revoked_in": channels}
    print_either(document, f"{release} is withdrawn from {', '.join(channels)}", as_json)


@app.command()
def refresh(repo: Repo, keys: Keys, as_json: Json = False) -> None:
    """Sign the timestamp again, which expires in a day, and what has lived half its life."""
    repository, ring = opened(repo), key_ring(keys)
    with repository.locked():
        short = repository.refresh(ring, utc_now())
    if as_json:
        print_json({"refreshed": True, "keys_missing_for": short})
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
    repository, ring = opened(repo), key_ring(keys)
    names = [name for title in role for name in ROLES[title].names]
    make_keys(new_keys, dict.fromkeys(names))
    with repository.locked():
        rotate(repository, role, ring, read_keys([new_keys]), utc_now())
    version = repository.root.version
    document = {"roles": role, "root_version": version}
    print_either(
        document, f"{', '.join(role)}: new keys in {new_keys}; root version {version}", as_json
    )


@app.command()
def status(repo: Repo, reports: Reports = None, as_json: Json = False) -> None:
    """What is on offer, with what evidence; which devices run it and where it failed."""
    from delivery.status import gather, read_reports
    from delivery.tables import print_status

    readable, unreadable = read_reports(reports) if reports else ([], [])
    overview = gather(opened(repo), readable, utc_now()) | {"unreadable_reports": unreadable}
    print_json(overview) if as_json else print_status(overview)


def _check_apart(keys: Path, repo: Path) -> None:
    if keys.resolve().is_relative_to(repo.resolve()):
        raise DeliveryError(
            "keys.folder", f"{keys} lies inside the repository", "name a folder that is not served"
        )


def _parsed(release: str) -> tuple[str, int]:
    match = re.fullmatch(r"([a-z0-9][a-z0-9._-]{0,63})-r([0-9]{4,9})", release)
    if not match:
        raise PlanError(f"{release[:80]!r} is not a release's name", "such as home-r0001")
    return match[1], int(match[2])
