"""What a run's log is due whenever somebody opens it: what a killed coordinator left, submissions, expiry.

Nothing here needs a client or Flower: ``fedge log tend`` does the same from a timer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.plan import Plan
from server.log import RunLog
from server.publishing import killed_leaves, retire_vectors, roster_leaves
from server.store import RunStore


@dataclass(frozen=True, kw_only=True)
class Tended:
    """What was done: ``leaves`` that were missing, rounds whose vectors were deleted."""

    leaves: int
    retired: list[int]


def tend(
    log: RunLog, store: RunStore, plan: Plan, roster: Mapping[str, bytes], *, now: float
) -> Tended:
    """Do what is due at ``now`` (seconds since 1970); ``roster`` is empty where it has not changed."""
    leaves = [*killed_leaves(log, store, plan), *roster_leaves(log, store, roster)]
    if leaves:
        log.append(leaves)
    return Tended(leaves=len(leaves), retired=retire_vectors(log, store, plan, now))
