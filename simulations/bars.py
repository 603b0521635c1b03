"""What a simulation says on standard error: bars on a terminal, lines elsewhere, warnings in any case."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from simulations.progress import Lines, Progress


class RichProgress:
    """A bar per task, which disappears with the last of them; lines stay above."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, int] = {}

    def update(self, task: str, done: float, total: float) -> None:
        """Move the bar of ``task``."""
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total)
        self._bars.update(self._tasks[task], completed=done, total=total)  # type: ignore[arg-type]

    def line(self, text: str) -> None:
        """Print it above the bars."""
        self._bars.console.print(text, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print it above the bars, in yellow."""
        self._bars.console.print(text, style="yellow", soft_wrap=True)


@contextmanager
def watched(*, quiet: bool) -> Iterator[Progress]:
    """Progress on standard error for as long as the block runs."""
    if quiet or not sys.stderr.isatty():
        yield Lines(sys.stderr, quiet=quiet)
        return
    with Bars(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True, markup=False, emoji=False),
        transient=True,
    ) as bars:
        yield RichProgress(bars)
