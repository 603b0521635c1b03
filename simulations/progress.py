"""What a simulation tells whoever watches it: bars for tasks, and lines for what has happened."""

from __future__ import annotations

from typing import Protocol, TextIO


class Progress(Protocol):
    """One bar per task, for instance ``rounds`` or ``evaluation``, and lines."""

    def update(self, task: str, done: float, total: float) -> None:
        """``done`` of ``total`` units of ``task`` are finished."""
        ...

    def line(self, text: str) -> None:
        """Something that has happened, in one line that stays."""
        ...

    def warn(self, text: str) -> None:
        """Something that everybody has to know who believes the run."""
        ...


class NoProgress:
    """Nobody watches."""

    def update(self, task: str, done: float, total: float) -> None:
        """Ignore it."""

    def line(self, text: str) -> None:
        """Ignore it."""

    def warn(self, text: str) -> None:
        """Ignore it."""


class Lines:
    """For files and pipes: no bars, every line at once; ``quiet`` ones are warnings only."""

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self._stream, self._quiet = stream, quiet

    def update(self, task: str, done: float, total: float) -> None:
        """Ignore it: a file shows no bars."""

    def line(self, text: str) -> None:
        """Write it, unless quiet."""
        if not self._quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Write it."""
        print(text, file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """For people: ``41 s``, ``12 min`` or ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
