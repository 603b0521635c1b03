"""``fedge run``: a plan's rounds over the sites of a coordinator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from protocol.legality import warnings_of


def run(
    plan: Annotated[Path, typer.Argument(help="the plan, TOML or JSON")],
    coordinator: Annotated[Path, typer.Option("--coordinator", help="its folder")],
    base: Annotated[Path, typer.Option("--base", help="folder of the base that the plan names")],
    out: Annotated[
        Path | None, typer.Option("--out", help="run folder; without it runs/<name> there")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option("--start", help="the round's adapter that the plan goes on from, or its run"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue a run, or watch one that is at work")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable output")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="say nothing before the end but warnings")
    ] = False,
) -> None:
    """Submit a run and wait. The exit code is the run's; Ctrl-C leaves it at work."""
    from fedge.plans import read_manifest, read_plan
    from operations.coordinator import Coordinator

    read_plan(plan)  # and refuse it, before what runs it is imported
    opened = Coordinator.open(coordinator)
    from operations.running import order, published_rounds, run_to_the_end

    wanted = order(opened, plan, base, out, start=start, resume=resume)
    warnings = [found.line for found in warnings_of(wanted.plan, read_manifest(base))]
    for line in warnings:
        typer.echo(line, err=True)

    def report(rounds: int, text: str) -> None:
        if not quiet:
            typer.echo(f"{rounds}/{wanted.plan.rounds}  {text}", err=True)

    run_to_the_end(opened, wanted, report)
    rounds = published_rounds(wanted.folder)
    record = json.loads(
        (wanted.folder / "rounds" / f"{rounds:04d}" / "record.json").read_text("utf-8")
    )
    if as_json:
        body = {"run": str(wanted.folder), "rounds": rounds, "adapter": record["adapter_out"]}
        body["warnings"] = warnings
        typer.echo(json.dumps(body))
    else:
        typer.echo(f"run: {wanted.folder}")
        typer.echo(f"adapter: {wanted.folder / 'rounds' / f'{rounds:04d}' / 'adapter'}")
