"""Time as an argument: the coordinator asks a clock, never the machine."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since any fixed moment, and waiting."""

    def now(self) -> float:
        """Seconds; never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait; a simulated clock jumps."""
        ...


class SystemClock:
    """The machine's clock: seconds since 1970, made monotonic from the moment of creation."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """Seconds since 1970."""
        return self._offset + time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for real."""
        time.sleep(seconds)
