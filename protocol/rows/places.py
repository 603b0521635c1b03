"""Where the rows of a file stand, kept beside them for errors that are seen only later."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from protocol.rows.formats import Place


class Places:
    """``places[i]`` is where row i stands; eight bytes a row, all of one file."""

    __slots__ = ("_first", "_numbers")

    def __init__(self) -> None:
        self._first: Place | None = None
        self._numbers = array("q")

    def append(self, place: Place) -> None:
        """One more row, of the same file."""
        self._first = self._first or place
        self._numbers.append(place.number)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, row: int) -> Place:
        number = self._numbers[row]
        assert self._first is not None
        return Place(path=self._first.path, unit=self._first.unit, number=number)

    def take(self, rows: Iterable[int]) -> Places:
        """Of the rows of these numbers, in that order."""
        taken = Places()
        taken._first = self._first
        taken._numbers.extend(self._numbers[row] for row in rows)
        return taken
