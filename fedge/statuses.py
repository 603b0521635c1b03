"""``fedge status``: a coordinator's processes, sites and runs, as a table that keeps itself up to date."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.table import Table

if TYPE_CHECKING:
    from operations.overview import Overview

EVERY_S = 2.0


def status(
    folder: Annotated[Path, typer.Argument(help="the coordinator's folder")],
    once: Annotated[bool, typer.Option("--once", help="print it once")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print it once, as JSON")] = False,
) -> None:
    """Show processes, sites and runs until Ctrl-C."""
    from rich.live import Live

    from operations.coordinator import Coordinator

    opened = Coordinator.open(folder)
    from operations.overview import look

    if once or as_json or not sys.stdout.isatty():
        show(look(opened), as_json)
        return
    with Live(tables(look(opened)), console=_console(), auto_refresh=False) as live:
        while True:
            time.sleep(EVERY_S)
            live.update(tables(look(opened)), refresh=True)


def show(overview: Overview, as_json: bool) -> None:
    """Print an overview."""
    if as_json:
        typer.echo(json.dumps(asdict(overview) | {"healthy": overview.healthy}))
    else:
        _console().print(tables(overview))


def tables(overview: Overview) -> Group:
    """Three tables: processes, sites, runs."""
    processes = Table("process", "state", "restarts", "last exit", title="coordinator")
    for process in overview.processes:
        state = f"up, {process.pid}" if process.pid else "down"
        last = "" if process.last_exit is None else str(process.last_exit)
        processes.add_row(process.name, state, str(process.restarts), last)
    if not overview.running:
        processes.add_row("supervisor", "not running", "", "")
    sites = Table("site", "state", "since", title=f"roster version {overview.roster_version}")
    for site in overview.sites:
        state = "on line twice: stop one of the two" if site.twice else site.status
        sites.add_row(site.name, state, site.last_activated_at[:19])
    head = ("run", "state", "rounds", "replies", "missing", "failed", "zeros", "cut", "epsilon")
    runs = Table(*head, title="runs")
    for run in overview.runs:
        epsilon = "" if run.epsilon is None else f"{run.epsilon:.2f}"
        counts = (f"{run.rounds}/{run.planned}", run.replies, run.drops, run.failed_attempts)
        zeros = "" if run.failures is None else str(run.failures)
        cut = "" if run.clipped is None else f"{run.clipped:.0%}"
        runs.add_row(run.name, run.state, *map(str, counts), zeros, cut, epsilon)
    return Group(processes, sites, runs)


def _console() -> Console:
    return Console(markup=False, emoji=False)
