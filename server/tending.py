"""What a run's log is due whenever somebody opens it: what a killed coordinator left, submissions, expiry.

Nothing here needs a client or Flower: ``fedge log tend`` does the same from a timer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from protocol.plan import Plan
from server.inbox import Taken, take_in
from server.log import RunLog
from server.publishing import killed_leaves, retire_vectors, roster_leaves
from server.store import RunStore


@dataclass(frozen=True, kw_only=True)
class Tended:
    """What was done: how many ``leaves`` were missing, submissions, rounds whose vectors were deleted."""

    leaves: int = 0
    taken: Taken = field(default_factory=Taken)
    retired: tuple[int, ...] = ()


def tend(
    log: RunLog, store: RunStore, plan: Plan, roster: Mapping[str, bytes], *, now: float
) -> Tended:
    """Do what is due at ``now`` (seconds since 1970); ``roster`` is empty where it has not changed."""
    if not log.size:
        return Tended()  # leaf 0 is the plan, and comes with round 0
    leaves = [*killed_leaves(log, store, plan), *roster_leaves(log, store, roster)]
    if leaves:
        log.append(leaves)
    taken = take_in(log, store)
    return Tended(
        leaves=len(leaves), taken=taken, retired=tuple(retire_vectors(log, store, plan, now))
    )
