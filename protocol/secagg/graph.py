"""Who keeps whose shares, who masks with whom, and how many it takes to undo it. (P-6.3)

In a small cohort everybody does with everybody. In a large one each client draws its own holders, by its own
randomness and after the cohort is fixed: nobody, the coordinator least, can choose them for it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from protocol.secagg.primitives import tagged_hash

COMPLETE_UP_TO = 128
CHOSEN_HOLDERS = 80  # above that
CHOICE_BYTES = 32
LEAST_SUMMANDS = 3  # below which a sum is no secret
NO_SEED = bytes(32)  # the place of a graph's seed in a cohort: no graph has one


def is_complete(clients: int) -> bool:
    """Whether everybody of so many is everybody's neighbour."""
    return clients <= COMPLETE_UP_TO


def degree(clients: int) -> int:
    """Holders of each client's shares: everybody else, or as many as it draws."""
    return clients - 1 if is_complete(clients) else CHOSEN_HOLDERS


def threshold(holders: int) -> int:
    """``floor(2k/3) + 1``: with fewer than k/3 corrupt, no two views reveal both secrets."""
    return 2 * holders // 3 + 1


def alive_quorum(clients: int) -> int:
    """Signatures on one alive set: ``floor(2n/3) + 1`` of the advertised clients, own included."""
    return 2 * clients // 3 + 1


def drawn(seed: bytes, among: int, count: int) -> list[int]:
    """``count`` distinct numbers below ``among``, in the order drawn.

    They are the first distinct ones of ``floor(w among / 2^64)``, w the big-endian u64 words of SHAKE-256 of
    ``seed``. Raises ValueError when there are not so many.
    """
    if count > among:
        raise ValueError(f"{count} of {among}")
    numbers: dict[int, None] = {}
    words = 2 * count
    while len(numbers) < count:
        stream = hashlib.shake_256(seed).digest(8 * words)
        for at in range(0, len(stream), 8):
            numbers[int.from_bytes(stream[at : at + 8], "big") * among >> 64] = None
        words *= 2
    return list(numbers)[:count]


def chosen_holders(
    ids: Sequence[bytes], own: bytes, xid: bytes, choice: bytes
) -> tuple[bytes, ...]:
    """The holders that a client's ``choice`` (32 bytes) draws among the other ``ids``, all of them sorted."""
    seed, rank = tagged_hash("holders", xid + own + choice), bisect_left(ids, own)
    numbers = sorted(drawn(seed, len(ids) - 1, CHOSEN_HOLDERS))
    return tuple(ids[number + (number >= rank)] for number in numbers)


def carries_seed(sender: bytes, receiver: bytes, *, complete: bool) -> bool:
    """Whether a box holds the seed of its pair: of two between neighbours the lower id's. (P-6.15)"""
    return sender < receiver or not complete


@dataclass(frozen=True)
class Graph:
    """``holders`` of each client's shares, sorted."""

    holders: Mapping[bytes, tuple[bytes, ...]]

    @cached_property
    def owners(self) -> Mapping[bytes, tuple[bytes, ...]]:
        """Of each client those whose shares it holds, sorted."""
        lists: dict[bytes, list[bytes]] = {}
        for owner in sorted(self.holders):
            for holder in self.holders[owner]:
                lists.setdefault(holder, []).append(owner)
        return {holder: tuple(owners) for holder, owners in lists.items()}

    def near(self, one: bytes) -> list[bytes]:
        """Those that ``one`` masks with: its holders, and those whose shares it holds; sorted."""
        return sorted({*self.holders.get(one, ()), *self.owners.get(one, ())})

    def source(self, one: bytes, other: bytes) -> bytes:
        """Of a pair the one whose box to the other holds the pair's seed."""
        lower, higher = sorted((one, other))
        return lower if higher in self.holders.get(lower, ()) else higher

    def can_open(self, alive: set[bytes], *, advertised: int) -> bool:
        """Whether ``alive`` are a quorum of so many, and hold shares enough of every member. (P-6.8)"""
        needed = threshold(degree(advertised))
        return len(alive) >= alive_quorum(advertised) and all(
            len(alive.intersection(holders)) >= needed for holders in self.holders.values()
        )

    def lost_pairs(
        self, members: Collection[bytes], alive: Collection[bytes]
    ) -> list[tuple[bytes, bytes]]:
        """(whose box holds the pair's seed, for whom) of each lost member and each alive neighbour of it."""
        living = set(alive)
        pairs = []
        for lost in members:
            for other in self.near(lost) if lost not in living else ():
                if other in living:
                    source = self.source(lost, other)
                    pairs.append((source, other if source == lost else lost))
        return pairs


def complete_graph(ids: Collection[bytes]) -> Graph:
    """Everybody holds shares of everybody else."""
    ordered = sorted(ids)
    return Graph({one: tuple(other for other in ordered if other != one) for one in ordered})
