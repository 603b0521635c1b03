"""``fedge plan continue``: the plan of more rounds, from a run that has some."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fedge.plan_files import plan_text, show_findings, write_new
from protocol.errors import PlanError
from protocol.legality import check
from protocol.plan import Plan, plan_from
from protocol.transparency.note import parse_key

NUMBERED = re.compile(r"(.*)-([0-9]{1,6})")
LONGEST_NAME = 64


def continue_run(
    run: Annotated[
        Path, typer.Argument(help="a run, its last round is meant; or a round's adapter")
    ],
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="how many more")],
    out: Annotated[Path, typer.Option("--out", help="file to write; must not exist yet")] = Path(
        "plan.toml"
    ),
    name: Annotated[
        str, typer.Option("--name", help="the run's; else the old one, counted up")
    ] = "",
    log: Annotated[
        str, typer.Option("--log", help="with witnesses: the verifier key of the new run's log")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable output")] = False,
) -> None:
    """Write a plan that goes on from a run's adapter: everybody agrees to it as to any other plan.

    All else is as in the run's own plan; change the file as you like. Exit code 3 while it may not be run.
    """
    from audit.continued import start_of
    from audit.log_copy import Trust
    from audit.sources import Folder
    from audit.verify import load_run
    from server.starting import round_of, sums_asked

    folder = round_of(run)
    before = load_run(Folder(folder.parent.parent), Trust())
    start = start_of(before, int(folder.name))
    sums_asked(folder, start.adapter)  # raises while one is open
    document = before.plan.model_dump(mode="json") | {
        "name": name or next_name(before.plan.name),
        "rounds": rounds,
        "start": start.model_dump(mode="json"),
    }
    if before.plan.witnessed:
        document["audit"] |= {"log": _log_key(log, before.plan)}
    plan = plan_from(document, source="the plan that goes on")
    findings = check(plan, before.manifest)
    write_new(out, plan_text(plan))
    legal = all(finding.severity != "error" for finding in findings)
    if as_json:
        body = {
            "plan": str(out),
            "digest": plan.digest,
            "start": start.model_dump(mode="json"),
            "legal": legal,
            "findings": [asdict(finding) for finding in findings],
        }
        typer.echo(json.dumps(body))
    else:
        show_findings(out, plan.digest, legal=legal, findings=findings)
        typer.echo(
            f"goes on from round {start.round} of {start.origin} ({start.rounds} rounds so far)\n"
            f"next: every client agrees to it, then `fedge run {out} --start {folder / 'adapter'} …`"
        )
    if not legal:
        raise typer.Exit(PlanError.exit_code)


def next_name(name: str) -> str:
    """The same with a number behind it, or the number counted up."""
    numbered = NUMBERED.fullmatch(name)
    stem, number = (numbered[1], int(numbered[2]) + 1) if numbered else (name, 2)
    return f"{stem[: LONGEST_NAME - 8]}-{number}"


def _log_key(given: str, before: Plan) -> str:
    """Of the new run's log. Raises PlanError, ProofError."""
    if not given or parse_key(given).name == before.audit.log.partition("+")[0]:
        raise PlanError(
            "the plan's witnesses know its run's log by name: another run has a log of its own",
            "make a key with another name: `fedge log new NAME --out FILE`, and give what it prints: --log",
        )
    return given
