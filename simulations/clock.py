"""The virtual clock of a simulation: time passes only where somebody waits.

Computing takes no virtual time, so a deadline never depends on how fast the machine is, and a
killed run that continues elsewhere takes the same decisions.
"""

from __future__ import annotations


class VirtualClock:
    """Fulfils ``server.clock.Clock``. Seconds from ``start``; only :meth:`sleep` advances it."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._next_event: float | None = None

    def now(self) -> float:
        """Virtual seconds."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Advance by ``seconds``, or further to the event that :meth:`idle_until` announced."""
        if seconds < 0:
            raise ValueError(f"cannot sleep {seconds} s")
        target = self._now + seconds
        if self._next_event is not None:
            target = max(target, self._next_event)
            self._next_event = None
        self._now = target

    def idle_until(self, moment: float) -> None:
        """Say that nothing happens before ``moment``: the next sleep jumps to the first such moment."""
        self._next_event = moment if self._next_event is None else min(self._next_event, moment)
