"""Who masks with whom, and how many it takes to undo it. (P-6.3)"""

from __future__ import annotations

from functools import lru_cache

from protocol.secagg.primitives import tagged_hash

COMPLETE_UP_TO = 128
DEFAULT_DEGREE = 64  # k above that
LEAST_SUMMANDS = 3  # below which a sum is no secret
NO_SEED = bytes(32)


def degree(clients: int, planned: int) -> int:
    """Neighbours per client: everybody in a small cohort, else the plan's even k."""
    return clients - 1 if clients <= COMPLETE_UP_TO else min(planned, clients - 1)


def threshold(neighbours: int) -> int:
    """``floor(2k/3) + 1``: with fewer than k/3 corrupt, no two views reveal both secrets."""
    return 2 * neighbours // 3 + 1


def alive_quorum(clients: int) -> int:
    """Signatures on one alive set: ``floor(2n/3) + 1`` of the advertised clients, own included."""
    return 2 * clients // 3 + 1


def graph_seed(root: bytes, beacon: bytes) -> bytes:
    """The seed of a k-regular graph; ``beacon`` is randomness that came after the adverts."""
    return tagged_hash("graph-seed", root + beacon)


@lru_cache(maxsize=2)
def neighbours(ids: tuple[bytes, ...], k: int, seed: bytes) -> dict[bytes, tuple[bytes, ...]]:
    """Each client's neighbours, sorted. Complete for ``k = n - 1``, else circulant with even k."""
    if k == len(ids) - 1:
        ordered = sorted(ids)
        return {one: tuple(other for other in ordered if other != one) for one in ordered}
    if k % 2 or k >= len(ids):
        raise ValueError("k is even and below the number of clients")
    ring = sorted(ids, key=lambda one: tagged_hash("graph", seed + one))
    n, half = len(ring), k // 2
    return {
        one: tuple(sorted(ring[(at + step) % n] for step in range(-half, half + 1) if step))
        for at, one in enumerate(ring)
    }
