"""A log's leaves by index and by kind; and as they will be, with others behind them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left
from collections.abc import Iterator

from protocol.transparency.leaf_codec import Read, decode_leaf
from protocol.transparency.leaves import Leaf
from protocol.transparency.lists import Fetch, Lists

NUMBERS = ("round", "seq")  # fields by which leaves are found without reading those of other rounds


class _Kind:
    """Where the leaves of a kind stand, and the numbers in them: 8 bytes each, for a log may be long."""

    def __init__(self) -> None:
        self.at = array("Q")
        self.numbers = {name: array("Q") for name in NUMBERS}

    def add(self, index: int, leaf: Leaf) -> None:
        self.at.append(index)
        for name, values in self.numbers.items():
            if name in type(leaf).model_fields:
                values.append(getattr(leaf, name))

    def among(self, fields: dict[str, object], since: int) -> Iterator[int]:
        """Indices, from ``since`` on, of those that may have these fields."""
        start = bisect_left(self.at, since)
        for name, values in self.numbers.items():
            if name in fields and len(values) == len(self.at):
                yield from (self.at[place] for place in _places(values, fields[name], start))
                return
        yield from self.at[start:]


def _places(values: array[int], value: object, start: int) -> Iterator[int]:
    while True:
        try:
            start = values.index(value, start) + 1  # type: ignore[arg-type]
        except ValueError:
            return
        yield start - 1


class Leaves(ABC):
    """The leaves of the log with this ``origin``, in its order; ``fetch_list`` reads what is in files."""

    def __init__(self, origin: str, fetch_list: Fetch) -> None:
        self.origin, self.fetch_list = origin, fetch_list
        self._kinds: dict[type[Leaf], _Kind] = {}

    @property
    @abstractmethod
    def size(self) -> int:
        """How many."""

    @abstractmethod
    def entry(self, index: int) -> bytes:
        """A leaf's bytes."""

    def whole(self, index: int) -> Read:
        """A leaf with its lists in it. Raises ProofError for a list that is not there."""
        read = decode_leaf(self.entry(index))
        return read.model_copy(update={"leaf": Lists(self.fetch_list).whole(read.leaf)})

    def find(self, kind: type[Leaf], *, since: int = 0, **fields: object) -> list[int]:
        """Indices, from ``since`` on, of the leaves of ``kind`` whose fields have these values."""
        of_kind = self._kinds.get(kind)
        indices = [] if of_kind is None else list(of_kind.among(fields, since))
        return [index for index in indices if self._has(index, fields)]

    def _has(self, index: int, fields: dict[str, object]) -> bool:
        if not fields:
            return True
        leaf = decode_leaf(self.entry(index)).leaf
        return all(getattr(leaf, name) == value for name, value in fields.items())

    def count(self, kind: type[Leaf]) -> int:
        """How many of ``kind``."""
        of_kind = self._kinds.get(kind)
        return 0 if of_kind is None else len(of_kind.at)

    def last(self, kind: type[Leaf]) -> int | None:
        """The index of the last leaf of ``kind``."""
        of_kind = self._kinds.get(kind)
        return None if of_kind is None else of_kind.at[-1]

    def holds(self, data: bytes) -> bool:
        """Whether these very bytes are one of them. Raises ProofError for what is no leaf."""
        kind = type(decode_leaf(data).leaf)
        return any(self.entry(index) == data for index in self.find(kind))

    def _note(self, data: bytes, index: int) -> None:
        """``data`` is to be leaf ``index``. Raises ProofError: what nobody could read never enters."""
        leaf = decode_leaf(data).leaf
        self._kinds.setdefault(type(leaf), _Kind()).add(index, leaf)


class Draft(Leaves):
    """A log as it will be: its leaves, and behind them those that are ``accepted``. The log stays as it is.

    So each of several leaves that come at once is verified as if those before it stood in the log already.
    """

    def __init__(self, log: Leaves) -> None:
        super().__init__(log.origin, log.fetch_list)
        self._log = log
        self.accepted: list[bytes] = []

    @property
    def size(self) -> int:
        """Those of the log and those accepted."""
        return self._log.size + len(self.accepted)

    def entry(self, index: int) -> bytes:
        """A leaf's bytes."""
        beyond = index - self._log.size
        return self._log.entry(index) if beyond < 0 else self.accepted[beyond]

    def find(self, kind: type[Leaf], *, since: int = 0, **fields: object) -> list[int]:
        """As of every log."""
        return [
            *self._log.find(kind, since=since, **fields),
            *super().find(kind, since=since, **fields),
        ]

    def count(self, kind: type[Leaf]) -> int:
        """As of every log."""
        return self._log.count(kind) + super().count(kind)

    def last(self, kind: type[Leaf]) -> int | None:
        """As of every log."""
        own = super().last(kind)
        return self._log.last(kind) if own is None else own

    def accept(self, data: bytes) -> None:
        """Put a leaf behind the others. Raises ProofError for what is none."""
        self._note(data, self.size)
        self.accepted.append(data)
