"""How updates travel from clients to the sum: advertise, share, mask, unmask.

An exchange has a client's side and a coordinator's side. The coordinator asks only for the phases
an exchange declares; ``plain`` declares ``mask`` alone. Whatever the exchange, the coordinator's
result is an :class:`Aggregate`, computed in exact integers, so that neither the order of arrival
nor the platform changes a bit. (P-3)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np

from protocol.layout import Vector


class Phase(StrEnum):
    """A request and its reply; also the action in Flower's message type ``train.<phase>``."""

    ADVERTISE = "advertise"
    SHARE = "share"
    MASK = "mask"
    AGREE = "agree"
    UNMASK = "unmask"


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one client gives to a round: ``update`` is (d,) float32, unweighted.

    ``metrics`` are those of the plan's task, in the order of the wire.
    ``failed``: it has nothing to give, and in a secret sum says so by zeros and a count.
    """

    update: Vector
    weight: int
    metrics: Mapping[str, float]
    failed: bool = False


def failed_contribution(size: int) -> Contribution:
    """Of a client whose training failed: ``size`` zeros, and nothing measured. (P-4.4)"""
    return Contribution(update=np.zeros(size, np.float32), weight=1, metrics={}, failed=True)


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """What a round yields: the weighted mean update (d,), total weight, summed metrics."""

    mean: Vector
    weight: int
    metrics: dict[str, float]
    clients: tuple[str, ...]


class CoordinatorExchange(Protocol):
    """The coordinator's side for one round."""

    name: str
    secure: bool
    phases: tuple[Phase, ...]

    def receive(self, client: str, message: bytes | memoryview) -> None:
        """Take a masked contribution; raises UpdateError and stays unchanged if it is unusable."""
        ...

    @property
    def message_bytes(self) -> int:
        """Of a masked contribution."""
        ...

    def state(self) -> bytes:
        """What was received so far, added up."""
        ...

    def restore(self, state: bytes) -> tuple[str, ...]:
        """Go on from a state, before anything else comes; whose contributions it holds. Raises ValueError."""
        ...

    def unmask(self) -> Aggregate:
        """The sum over everything received. Raises RoundError when there is nothing."""
        ...
