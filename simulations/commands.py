"""``fedge simulate`` and ``fedge report``: the shell around :mod:`simulations.run`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from protocol.errors import FedgeError
from simulations.progress import NoProgress

if TYPE_CHECKING:
    from simulations.summary import Summary


class RichProgress:
    """Progress bars on standard error, one per task; a finished one disappears with its task."""

    def __init__(self) -> None:
        self._bars = Bars(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True, markup=False, emoji=False),
            transient=True,
        )
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> RichProgress:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def update(self, task: str, done: float, total: float) -> None:
        """Move the bar of ``task``."""
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total)
        self._bars.update(self._tasks[task], completed=done, total=total)  # type: ignore[arg-type]


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
    resume: Annotated[bool, typer.Option("--resume", help="continue a run")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bars")] = False,
) -> None:
    """Run an experiment: federated rounds, the yardsticks, the release, the report."""
    from simulations.experiment import experiment_path, load_experiment
    from simulations.run import simulate as run

    going_on = [f"start={json.dumps(str(start.resolve()))}"] if start else []
    loaded = load_experiment(experiment_path(experiment), [*(overrides or []), *going_on])
    folder = out or Path("runs") / loaded.name
    with RichProgress() if not quiet else nullcontext(NoProgress()) as progress, _where(folder):
        summary = run(loaded, folder, resume=resume, progress=progress)
    if as_json:
        typer.echo(json.dumps(summary.model_dump(mode="json"), indent=1))
    else:
        console = Console(markup=False, emoji=False)
        console.print(summary_table(summary))
        for line in [*summary.insecure, *_counted(summary)]:
            console.print(f"! {line}", style="yellow")
        console.print(f"run: {folder}", soft_wrap=True)
        console.print(f"adapter: {summary.adapter}", soft_wrap=True)
        if summary.report:
            console.print(f"report: {summary.report}", soft_wrap=True)


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


def _counted(summary: Summary) -> list[str]:
    said = []
    if summary.failures:
        said.append(f"{summary.failures} time(s) a device failed and contributed zeros")
    if (summary.clipped_share or 0) > 0.5:
        said.append(f"{summary.clipped_share:.0%} of the updates were cut at secrecy.clip")
    return said


def report(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable output")] = False,
) -> None:
    """Write the run's report: one self-contained HTML page."""
    from simulations.report import write_report

    path = str(write_report(run))
    typer.echo(json.dumps({"report": path}) if as_json else path)


def summary_table(summary: Summary) -> Table:
    """The figures of a run as a table."""
    title = f"{summary.name}: {summary.clients} devices, {summary.rounds} rounds"
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for label, value in (
        ("accuracy, devices alone (mean)", _percent(summary.accuracy_alone_mean)),
        ("accuracy, federated", _percent(summary.accuracy_federated)),
        ("accuracy, all data in one place", _percent(summary.accuracy_pooled)),
        ("up per client and round", _size(summary.upload_bytes_per_client_round)),
        ("down per client and round", _size(summary.download_bytes_per_client_round)),
        ("adapter on the device", _size(summary.adapter_bytes)),
        ("parity, largest relative", _real(summary.parity_max_relative)),
        ("parity, same labels", _percent(summary.parity_label_agreement)),
        ("updates are summed", "in secret" if summary.exchange == "secagg" else "in clear"),
        ("epsilon spent by a device", _epsilon(summary)),
        ("rounds an auditor verifies", f"{summary.rounds_verified} of {summary.rounds}"),
        ("replies missing or refused", str(summary.dropped)),
        ("tokens per second", f"{summary.tokens_per_second:,.0f}"),
        ("seconds", f"{summary.seconds:.0f}"),
    ):
        table.add_row(label, value)
    return table


def _epsilon(summary: Summary) -> str:
    if summary.epsilon is None:
        return "no privacy noise"
    return f"{summary.epsilon:.2f} at delta {summary.delta:g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _real(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} KB"
