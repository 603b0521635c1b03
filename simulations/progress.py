"""What a simulation tells whoever watches it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """One bar per task, for instance ``rounds`` or ``evaluation``."""

    def update(self, task: str, done: float, total: float) -> None:
        """``done`` of ``total`` units of ``task`` are finished."""
        ...


class NoProgress:
    """For tests and --quiet."""

    def update(self, task: str, done: float, total: float) -> None:
        """Ignore it."""
