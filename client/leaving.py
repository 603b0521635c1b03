"""How a training ends before its last step: where a process leaves, and its trainings are in threads.

The main thread is interrupted by a signal; others see it at the next step that they take.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

Result = TypeVar("Result")
Argument = TypeVar("Argument")


class Leaving:
    """Whether work that heeds it is to end."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def now(self) -> None:
        """Work that heeds this ends at its next step, by KeyboardInterrupt."""
        self._event.set()

    def heeded(self, work: Callable[[Argument], Result], argument: Argument) -> Result:
        """The result of ``work``, in this thread. Raises KeyboardInterrupt where it ended before."""
        token = _heeded.set(self)
        try:
            self.check()
            return work(argument)
        finally:
            _heeded.reset(token)

    def check(self) -> None:
        """Raises KeyboardInterrupt, which no client takes for a failure of its own, once it is time."""
        if self._event.is_set():
            raise KeyboardInterrupt


def check_leaving(_step: int = 0) -> None:
    """To be called at every step of a training. Raises KeyboardInterrupt."""
    if (leaving := _heeded.get()) is not None:
        leaving.check()


_heeded: ContextVar[Leaving | None] = ContextVar("leaving", default=None)
