"""What a coordinator holds of each client between two phases, as it came. (P-6.8)

Eighty boxes and eighty shares of each of thousands of clients, as objects of their own, would take several
times their bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

from protocol.merkle import merkle_root
from protocol.secagg.graph import Graph
from protocol.secagg.messages import REVEAL_BYTES


@dataclass(frozen=True, slots=True)
class Sealed(Mapping[bytes, bytes]):
    """The boxes that a client sealed, one behind the other, by holder; ``holders`` are sorted.

    ``root`` is the RFC 6962 root over them that their client signed.
    """

    holders: tuple[bytes, ...]
    ends: tuple[int, ...]  # of each box, 0 before them
    data: bytes
    root: bytes

    def __getitem__(self, holder: bytes) -> bytes:
        at = bisect_left(self.holders, holder)
        if self.holders[at : at + 1] != (holder,):
            raise KeyError(holder)
        return self.data[self.ends[at] : self.ends[at + 1]]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.holders)

    def __len__(self) -> int:
        return len(self.holders)


def sealed_boxes(holders: tuple[bytes, ...], sizes: Sequence[int], data: bytes) -> Sealed | None:
    """Boxes of these sizes for these holders, or None when they do not fill ``data``."""
    ends = _ends(tuple(sizes))
    if ends[-1] != len(data):
        return None
    root = merkle_root([data[start:end] for start, end in pairwise(ends)])
    return Sealed(holders, ends, data, root)


@lru_cache(maxsize=256)
def _ends(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """One for all whose boxes are alike."""
    return tuple(accumulate(sizes, initial=0))


class Reveals(Mapping[bytes, Mapping[bytes, int]]):
    """Shares of each client's secret, by who revealed them; replies stay as they came."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._replies: dict[bytes, bytes] = {}

    def add(self, holder: bytes, reply: bytes) -> None:
        """A reply that was checked: kind and share of each owner, by id."""
        self._replies[holder] = reply

    @property
    def replied(self) -> Set[bytes]:
        """Who has replied."""
        return self._replies.keys()

    def __getitem__(self, owner: bytes) -> Mapping[bytes, int]:
        shares = {}
        for holder in self._graph.holders[owner]:
            if holder in self._replies:
                at = REVEAL_BYTES * bisect_left(self._graph.owners[holder], owner)
                share = self._replies[holder][at + 1 : at + REVEAL_BYTES]
                shares[holder] = int.from_bytes(share, "big")
        return shares

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._graph.holders)

    def __len__(self) -> int:
        return len(self._graph.holders)
