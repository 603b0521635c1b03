"""Wall seconds of a run's parts, summed over all processes that worked on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from simulations.files import read_json, write_json

TIMINGS = "timings.json"


class Timings:
    """``timings.json``: ``parts`` by name and ``rounds`` by number, in seconds."""

    def __init__(self, out: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = out / TIMINGS, clock
        stored = read_json(self._path, {"parts": {}, "rounds": {}})
        self.parts: dict[str, float] = stored["parts"]
        self.rounds: dict[str, float] = stored["rounds"]

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
        """All parts together."""
        return sum(self.parts.values())

    def _save(self) -> None:
        write_json(self._path, {"parts": self.parts, "rounds": self.rounds})
