"""Clients that fail, and clients that are slow: silence, lateness and speeds, decided by a hash.

A fault is a pure function of (seed, round, attempt, client): it does not depend on the order in
which clients are asked, and a killed run that continues meets the same faults. The attempt is in
the hash because a round that is tried again is asked anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from protocol.encoding import seed_from

SPAN = float(2**63)  # of seed_from


class Fault(StrEnum):
    """What goes wrong with one client in one round."""

    NONE = "none"
    DROPOUT = "dropout"  # no answer, ever
    STRAGGLER = "straggler"  # an answer after the deadline


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """Probabilities per client and round; their sum is at most 1."""

    seed: int = 0
    dropout: float = 0.0
    straggler: float = 0.0

    def __post_init__(self) -> None:
        if min(self.dropout, self.straggler) < 0 or self.dropout + self.straggler > 1:
            raise ValueError("dropout and straggler are probabilities with a sum of at most 1")

    def of(self, *, round_number: int, attempt: int, client: str) -> Fault:
        """The fault of ``client`` in this attempt at this round."""
        draw = seed_from("fault", self.seed, round_number, attempt, client) / SPAN
        if draw < self.dropout:
            return Fault.DROPOUT
        if draw < self.dropout + self.straggler:
            return Fault.STRAGGLER
        return Fault.NONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Speeds:
    """How long a client trains in a round, in virtual seconds; ``slow`` ones ``slowness`` times as long."""

    training_s: float = 0.0
    slowness: float = 1.0
    slow: frozenset[str] = frozenset()

    def seconds(self, client: str) -> float:
        """Virtual seconds of ``client``'s training."""
        return self.training_s * (self.slowness if client in self.slow else 1.0)


def slow_clients(names: Iterable[str], *, share: float, seed: int) -> frozenset[str]:
    """The same ``share`` of ``names`` in every round, to the nearest whole client."""
    ordered = sorted(names, key=lambda name: (seed_from("slow", seed, name), name))
    return frozenset(ordered[: round(share * len(ordered))])
