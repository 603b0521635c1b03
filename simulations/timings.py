"""Wall seconds of a run's parts, over all processes that worked on it; they add up to the whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simulations.files import read_json, write_json

TIMINGS, OTHER = "timings.json", "other"


class Timings:
    """``timings.json``: ``parts`` by name and ``rounds`` by number, in seconds, and the ``whole`` from the
    beginning of each process to its last entry; ``started`` and ``ended`` in seconds of the epoch."""

    def __init__(
        self,
        out: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        date: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._clock, self._date = out / TIMINGS, clock, date
        stored: dict[str, Any] = read_json(self._path, {"parts": {}, "rounds": {}})
        self.parts: dict[str, float] = stored["parts"]
        self.rounds: dict[str, float] = stored["rounds"]
        self.started = float(stored.get("started", date()))
        self.ended = float(stored.get("ended", self.started))
        self._before = float(stored.get("whole", sum(self.parts.values()))) - clock()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time the block takes; what a kill cuts off is not counted."""
        start = self._clock()
        yield
        self.add(name, self._clock() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add to a part."""
        self.parts[name] = self.parts.get(name, 0.0) + seconds
        self._save()

    def round(self, number: int, seconds: float) -> None:
        """The time of one round, which is also added to ``federated``."""
        self.rounds[str(number)] = seconds
        self.add("federated", seconds)

    def now(self) -> float:
        """Seconds of the clock used here."""
        return self._clock()

    @property
    def total(self) -> float:
        """All of it until now, over all processes."""
        return self._before + self._clock()

    def table(self) -> dict[str, float]:
        """The parts, and ``other``: what is left of the whole."""
        rest = self.total - sum(self.parts.values())
        return {**self.parts, OTHER: max(0.0, rest)}

    def _save(self) -> None:
        self.ended = self._date()
        write_json(
            self._path,
            {
                "parts": self.parts,
                "rounds": self.rounds,
                "whole": self.total,
                "started": self.started,
                "ended": self.ended,
            },
        )
