"""The bytes of a log's leaves: those of full bundles are read from disk, the rest is held here. (P-8.4)

So a log costs its writer no memory for what it will hardly look at again, however long it grows.
"""

from __future__ import annotations

from pathlib import Path

from protocol.errors import ProofError
from protocol.transparency.tiles import WIDTH, entries_path, parse_entries
from storage.regular import read_regular

MOST_BUNDLE = WIDTH * (2**16 + 2)  # bytes
REMEDY = "restore the run folder from a copy; do not resume it as it is"


class Entries:
    """Leaves 0, 1, … of the log in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._start = 0  # of the first leaf that is held
        self._held: list[bytes] = []
        self._bundle: tuple[int, list[bytes]] = (-1, [])  # the one that was read last

    def __len__(self) -> int:
        return self._start + len(self._held)

    def append(self, data: bytes) -> None:
        """Hold one more leaf."""
        self._held.append(data)

    def release(self, size: int) -> None:
        """Full bundles of the first ``size`` leaves are on disk: hold them no longer."""
        start = size // WIDTH * WIDTH
        del self._held[: max(0, start - self._start)]
        self._start = max(start, self._start)

    def __getitem__(self, index: int) -> bytes:
        """A leaf's bytes. Raises IndexError, and ProofError for a bundle that cannot be read."""
        if index >= self._start:
            return self._held[index - self._start]
        if index < 0:
            raise IndexError(index)
        return self._read(index // WIDTH)[index % WIDTH]

    def between(self, start: int, stop: int) -> list[bytes]:
        """Leaves ``start`` to ``stop`` (without it)."""
        return [self[index] for index in range(start, stop)]

    def _read(self, number: int) -> list[bytes]:
        if self._bundle[0] != number:
            name = entries_path(number)
            try:
                bundle = parse_entries(read_regular(self._folder / name, most=MOST_BUNDLE))
            except OSError as error:
                cause = f"{name} cannot be read ({type(error).__name__})"
                raise ProofError(cause, REMEDY) from None
            if len(bundle) != WIDTH:
                raise ProofError(f"{name} has {len(bundle)} entries", REMEDY)
            self._bundle = number, bundle
        return self._bundle[1]
