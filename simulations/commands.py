"""``fedge simulate``, ``fedge compare`` and ``fedge report``: the shell around :mod:`simulations.run`.

An experiment is read, and refused, before anything of what runs it is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from protocol.errors import ArtefactError, FedgeError
from simulations.jobs import Jobs, jobs_of

if TYPE_CHECKING:
    from simulations.compare import Group
    from simulations.seeds import SeedRun

Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]


def simulate(
    experiment: Annotated[str, typer.Argument(help="a TOML file, or the name of one that ships")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="a.b=value; may be given again")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="run folder; default runs/<name>")] = None,
    start: Annotated[
        Path | None,
        typer.Option("--start", help="go on from another run: its folder, or a round's adapter"),
    ] = None,
    seeds: Annotated[
        str, typer.Option("--seeds", help="1,2,3 or 1-5: a run folder each under --out")
    ] = "",
    resume: Annotated[bool, typer.Option("--resume", help="continue a run")] = False,
    jobs: Jobs = 0,
    ray: Annotated[
        str,
        typer.Option("--ray", help="clients run on this Ray cluster; `local`: one of this machine"),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="say nothing before the end but warnings")
    ] = False,
) -> None:
    """Run an experiment: federated rounds, the yardsticks, the release, the report."""
    from simulations.bars import watched
    from simulations.experiment import experiment_path, load_experiment
    from simulations.seeds import seed_runs, seeds_of

    path = experiment_path(experiment)
    going_on = [f"start={json.dumps(str(start.resolve()))}"] if start else []
    overrides = [*(overrides or []), *going_on]
    if seeds:
        folder, runs = seed_runs(path, overrides, seeds_of(seeds), out, resume=resume)
        _simulate_seeds(
            folder, runs, jobs=jobs_of(jobs, ray), ray=ray, as_json=as_json, quiet=quiet
        )
        return
    loaded = load_experiment(path, overrides)
    folder = out or Path("runs") / loaded.name
    from simulations.prepare import admit

    if admit(loaded, folder.resolve(), resume=resume) is not None and resume:
        typer.echo(f"there is no run to resume in {folder}: it begins", err=True)
    from simulations.run import simulate as run

    with watched(quiet=quiet) as progress, _where(folder):
        summary = run(
            loaded, folder, resume=resume, progress=progress, jobs=jobs_of(jobs, ray), ray=ray
        )
    if as_json:
        typer.echo(json.dumps(summary.document(), indent=1))
        return
    from simulations.summary_table import print_summary

    print_summary(Console(markup=False, emoji=False), summary, folder)


def _simulate_seeds(
    folder: Path, runs: list[SeedRun], *, jobs: int, ray: str, as_json: bool, quiet: bool
) -> None:
    from simulations.alike import verify_alike
    from simulations.bars import watched
    from simulations.compare import comparison, grouped, run_files
    from simulations.files import SEEDS, SUMMARY, write_json
    from simulations.prepare import BASES

    verify_alike(runs)
    from simulations.run import simulate as run

    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    refused: dict[int, FedgeError] = {}
    for number, each in enumerate(runs, 1):
        with watched(quiet=quiet) as progress:
            progress.line(f"seed {each.seed}, {number} of {len(runs)}: {each.folder}")
            try:
                run(
                    each.experiment,
                    each.folder,
                    resume=each.folder.exists(),
                    progress=progress,
                    cache=folder.parent / BASES,
                    jobs=jobs,
                    ray=ray,
                )
            except FedgeError as error:  # of this seed; the others are runs of their own
                progress.warn(f"seed {each.seed}: {error.cause}")
                refused[each.seed] = error
    measured = [each for each in runs if (each.folder / SUMMARY).is_file()]
    if not measured:
        raise next(iter(refused.values()))
    groups = grouped([files for each in measured for files in run_files(each.folder)])
    body = comparison(groups) | {
        "seeds": [each.seed for each in measured],
        "refused": {str(seed): error.cause for seed, error in refused.items()},
        "run": str(folder),
    }
    write_json(folder / SEEDS, body)
    if as_json:
        typer.echo(json.dumps(body, indent=1))
    else:
        _print_groups(groups)
        typer.echo(f"runs: {folder}")
    if refused:
        raise next(iter(refused.values()))


@contextmanager
def _where(folder: Path) -> Iterator[None]:
    """Of a run that ends with an error: where to read how far it came."""
    page = folder / "report.html"
    before = page.stat().st_mtime_ns if page.is_file() else 0
    try:
        yield
    except FedgeError:
        if page.is_file() and page.stat().st_mtime_ns != before:
            typer.echo(f"report: {page}", err=True)
        raise


def compare(
    runs: Annotated[list[Path], typer.Argument(help="run folders, or those of several seeds")],
    html: Annotated[
        Path | None, typer.Option("--html", help="also write a page with plots to this file")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put runs beside one another: figures, curves, what their settings differ in."""
    from simulations.compare import comparison, grouped, run_files

    groups = grouped([files for run in runs for files in run_files(run)])
    if html is not None:
        _write_page(html, groups)
    if as_json:
        page = {"html": None if html is None else str(html)}
        typer.echo(json.dumps(comparison(groups) | page))
        return
    _print_groups(groups)
    if html is not None:
        typer.echo(f"page: {html}")


def _write_page(path: Path, groups: list[Group]) -> None:
    from simulations.compare_page import compare_page
    from simulations.files import write_text

    try:
        write_text(path, compare_page(groups))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise ArtefactError(
            f"{path} cannot be written: {error.strerror}", "name a file in a folder that is there"
        ) from None


def _print_groups(groups: list[Group]) -> None:
    from simulations.summary_table import group_tables

    console = Console(markup=False, emoji=False)
    for table in group_tables(groups):
        console.print(table)


def report(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    as_json: Json = False,
) -> None:
    """Write the run's report: one self-contained HTML page."""
    from simulations.report import write_report

    path = str(write_report(run))
    typer.echo(json.dumps({"report": path}) if as_json else path)
