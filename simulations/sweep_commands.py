"""``fedge sweep``: an experiment over a grid of settings and seeds, resumable, with one table and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from protocol.errors import ArtefactError, FedgeError, PlanError
from simulations.bars import watched
from simulations.experiment import Experiment, experiment_path, load_experiment
from simulations.files import write_json, write_text
from simulations.jobs import Jobs, jobs_of
from simulations.progress import Progress
from simulations.seeds import seeds_of
from simulations.sweep import (
    PAGE,
    SWEEP,
    Axis,
    Cell,
    axis_of,
    cells,
    combinations,
    outcome_of,
    table,
)
from simulations.sweep_page import settings_text, sweep_page, sweep_table


def sweep(
    experiment: Annotated[str, typer.Argument(help="a TOML file, or the name of one that ships")],
    over: Annotated[
        list[str],
        typer.Option(
            "--over",
            help="key=a,b, key=[...] as in TOML, or key=low..high with --random; may be given again",
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="a.b=value for all; may be given again")
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="1,2,3 or 1-5: runs of each cell")] = "0",
    random: Annotated[
        int,
        typer.Option("--random", min=0, max=1000, help="so many cells of the grid, drawn; 0: all"),
    ] = 0,
    draw: Annotated[int, typer.Option("--draw", min=0, help="seed of --random")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder of the runs; default runs/<name>-sweep")
    ] = None,
    jobs: Jobs = 0,
    dry: Annotated[bool, typer.Option("--dry-run", help="list the cells and run none")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable output")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="say nothing before the end but warnings")
    ] = False,
) -> None:
    """Run an experiment for every combination of settings: what is there already is not run again.

    The same command goes on where it was stopped, a wider one keeps what was run. Cells that may not be run
    are listed with the reason. Exit code 1 when a run failed.
    """
    path, fixed = experiment_path(experiment), list(overrides or [])
    axes = [axis_of(text) for text in over]
    _verify_keys(axes, fixed)
    folder = _folder(out or Path("runs") / f"{load_experiment(path, fixed).name}-sweep")
    settings = combinations(axes, random=random, seed=draw)
    swept = cells(path, fixed, settings, seeds_of(seeds), folder)
    if all(cell.reason for cell in swept):
        raise PlanError(f"no cell may be run: {swept[0].reason}", "vary other keys")
    failed = 0
    if not dry:
        folder.mkdir(parents=True, exist_ok=True)
        swept, failed = _run_all(swept, folder, jobs=jobs_of(jobs), quiet=quiet)
    rows = table(swept)
    if not dry:
        write_json(folder / SWEEP, rows)
        write_text(folder / PAGE, sweep_page(folder.name, rows))
    _show(rows, folder, as_json=as_json, dry=dry)
    if failed:
        raise typer.Exit(1)


def _verify_keys(axes: Sequence[Axis], fixed: Sequence[str]) -> None:
    keys = {axis.key for axis in axes}
    if "plan.seed" in keys:
        raise PlanError("--over plan.seed: seeds have an option of their own", "--seeds 0-4")
    if both := keys & {override.partition("=")[0].strip() for override in fixed}:
        raise PlanError(f"--set and --over both name {min(both)}", "leave one of them out")


def _folder(out: Path) -> Path:
    """Where runs may lie. Raises ArtefactError for a file, or a folder that holds something else."""
    if out.exists() and not out.is_dir():
        raise ArtefactError(f"{out} is a file", "name a folder with --out")
    names = [entry.name for entry in out.iterdir()] if out.is_dir() else []
    own = {SWEEP, PAGE, f".{SWEEP}.tmp", f".{PAGE}.tmp"}
    odd = sorted(name for name in names if name not in own and "-seed-" not in name)
    if odd:
        raise ArtefactError(
            f"{out} is not a sweep: it has {odd[0]}", "name another folder with --out"
        )
    return out.resolve()


def _run_all(
    swept: Sequence[Cell], folder: Path, *, jobs: int, quiet: bool
) -> tuple[list[Cell], int]:
    """The cells, with the reason of those of which a run came to no end, and how many runs failed.

    A run that was refused its release is through, and its summary says so: it counts every time.
    """
    after, failed = [], 0
    total, number = sum(len(cell.runs) for cell in swept), 0
    for cell in swept:
        for seed, (experiment, place) in cell.runs.items():
            number += 1
            if outcome_of(place) is None:
                which = f"{settings_text(cell.settings)}, seed {seed}"
                with watched(quiet=quiet) as progress:
                    progress.line(f"run {number} of {total}: {which}")
                    error = _run(experiment, place, folder.parent, progress, jobs)
                    if error is not None:
                        progress.warn(f"{which}: {error.cause}")
                if error is not None and outcome_of(place) is None:
                    cell = replace(cell, reason=cell.reason or error.cause)
                    failed += not isinstance(error, PlanError)  # which is illegal on this base
            failed += bool((outcome_of(place) or {}).get("refused"))
        after.append(cell)
    return after, failed


def _run(
    experiment: Experiment, place: Path, beside: Path, progress: Progress, jobs: int
) -> FedgeError | None:
    """Run one, or go on with it, and say what ended it early; ``beside`` has the folder of built bases."""
    from simulations.prepare import BASES
    from simulations.run import simulate

    try:
        simulate(
            experiment,
            place,
            resume=place.exists(),
            progress=progress,
            cache=beside / BASES,
            jobs=jobs,
        )
    except FedgeError as error:  # of this run; the others are runs of their own
        return error
    return None


def _show(rows: list[dict[str, Any]], folder: Path, *, as_json: bool, dry: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    console = Console(markup=False, emoji=False)
    if dry:
        for row in rows:
            console.print(settings_text(row["settings"]), soft_wrap=True)
    else:
        console.print(sweep_table(rows))
    for row in rows:
        if row["reason"]:
            console.print(f"{settings_text(row['settings'])}: {row['reason']}", soft_wrap=True)
    if not dry:
        console.print(f"page: {folder / PAGE}", soft_wrap=True)
