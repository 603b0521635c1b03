"""A log's leaves by index and by kind; and as they will be, with others behind them."""

from __future__ import annotations

from bisect import bisect_left

from protocol.transparency.leaf_codec import Read, decode_leaf
from protocol.transparency.leaves import Leaf
from protocol.transparency.lists import Fetch, Lists


class Leaves:
    """The leaves of the log with this ``origin``, in its order; ``fetch_list`` reads what is in files."""

    def __init__(self, origin: str, fetch_list: Fetch) -> None:
        self.origin, self.fetch_list = origin, fetch_list
        self._entries: list[bytes] = []
        self._kinds: dict[type[Leaf], list[int]] = {}

    @property
    def size(self) -> int:
        """How many."""
        return len(self._entries)

    def entry(self, index: int) -> bytes:
        """A leaf's bytes."""
        return self._entries[index]

    def whole(self, index: int) -> Read:
        """A leaf with its lists in it. Raises ProofError for a list that is not there."""
        read = decode_leaf(self.entry(index))
        return read.model_copy(update={"leaf": Lists(self.fetch_list).whole(read.leaf)})

    def find(self, kind: type[Leaf], *, since: int = 0, **fields: object) -> list[int]:
        """Indices, from ``since`` on, of the leaves of ``kind`` whose fields have these values."""
        indices = []
        of_kind = self._kinds.get(kind, [])
        for index in of_kind[bisect_left(of_kind, since) :]:
            leaf = decode_leaf(self._entries[index]).leaf if fields else None
            if all(getattr(leaf, name) == value for name, value in fields.items()):
                indices.append(index)
        return indices

    def holds(self, data: bytes) -> bool:
        """Whether these very bytes are one of them. Raises ProofError for what is no leaf."""
        kind = type(decode_leaf(data).leaf)
        return any(self._entries[index] == data for index in self.find(kind))

    def _add(self, data: bytes) -> None:
        kind = type(decode_leaf(data).leaf)  # what nobody could read never enters
        self._kinds.setdefault(kind, []).append(self.size)
        self._entries.append(data)


class Draft(Leaves):
    """A log as it will be: its leaves, and behind them those that are ``accepted``. The log stays as it is.

    So each of several leaves that come at once is verified as if those before it stood in the log already.
    """

    def __init__(self, log: Leaves) -> None:
        super().__init__(log.origin, log.fetch_list)
        self._entries = log._entries.copy()
        self._kinds = {kind: indices.copy() for kind, indices in log._kinds.items()}
        self._start = log.size

    @property
    def accepted(self) -> list[bytes]:
        """The new leaves, in their order."""
        return self._entries[self._start :]

    def accept(self, data: bytes) -> None:
        """Put a leaf behind the others. Raises ProofError for what is none."""
        self._add(data)
