"""``fedge deploy publish``: a released round through the gate, on offer to the canaries. (P-9.3, P-9.6)"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from delivery.command_options import (
    Before,
    Despite,
    Json,
    Keys,
    RepoOption,
    key_ring,
    opened,
    print_either,
    utc_now,
)
from protocol.delivery import CANARY, release_name
from protocol.errors import ArtefactError, PlanError

if TYPE_CHECKING:
    from delivery.evidence import About, Check
    from delivery.gate import Bar, Verdict
    from delivery.keys import KeyRing
    from delivery.repository import Repository
    from protocol.delivery import Offer

Floor = Annotated[
    float,
    typer.Option(
        "--floor",
        min=0,
        max=1,
        help="least accuracy; of numbers, most NRMSE is 1 less this; of texts, most perplexity 1 over this; "
        "of images that are drawn, most noise error 1 less this",
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
    from delivery.releases import sent_bytes

    number, name = _round(run, round_number), _delivery_name(run, name)
    repository, ring = opened(repo), key_ring(keys)
    with repository.locked():
        bar = replace(
            _bar(repository, name, run, floor, margin),
            most=_bounds(most or []),
            despite_withdrawal=despite_withdrawal,
        )

        def verdict(about: About) -> Verdict:
            return _verdict(run, number, about, base, bar, trust, audit, before or [])

        offer, checks = _offer(repository, ring, name, run, number, verdict, rollout)
        sent = sent_bytes(repository, CANARY, name, offer)
    document = {
        "release": release_name(name, offer.seq),
        "id": offer.id,
        "channel": CANARY,
        "sent_bytes": sent,
        "checks": {check.name: check.detail for check in checks},
    }
    line = f"{document['release']} is on offer to the canaries"
    if sent < (size := offer.files.adapter.length):
        line += f"; of the adapter's {size:,} bytes {sent:,} are sent to a device"
    print_either(document, line, as_json)


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

    now = utc_now()
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
        return read_audit(audit) if audit else run_audit(run, policy, before, base=base)

    return examine(
        run, number, about, base=base, policy=policy, bar=bar, audited=audited, before=before
    )


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
