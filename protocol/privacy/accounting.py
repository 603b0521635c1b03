"""Epsilon of what was spent, by Google's dp-accounting. (P-7.3)

Neighbours differ in one client's update set to zero. Every attempt in which a share was revealed
counts, whether or not an adapter came of it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from protocol.errors import MachineError

ORDERS = [1.25, 1.5, 1.75, *range(2, 129), 160, 192, 256, 512]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Zero-concentrated privacy of one or more sums: ``rho``, and ``xi`` added to every order."""

    rho: float = 0.0
    xi: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(rho=self.rho + other.rho, xi=self.xi + other.xi)

    def times(self, count: int) -> Spent:
        """Of ``count`` sums like this one: zCDP adds up. (P-7.3)"""
        return Spent(rho=self.rho * count, xi=self.xi * count)


@lru_cache(maxsize=1024)
def epsilon(spent: Spent, *, delta: float) -> float:
    """Epsilon at ``delta``; 0 when nothing was spent."""
    if spent == Spent():
        return 0.0
    dp_event, accountant = _accountant(ORDERS)
    accountant.compose(dp_event.ZCDpEvent(rho=spent.rho, xi=spent.xi))
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=1024)
def sampled_epsilon(rounds: int, *, multiplier: float, sampling: float, delta: float) -> float:
    """Epsilon of ``rounds`` sums with central Gaussian noise over true Poisson samples.

    Holds against readers of what is released, who know nobody's participation; the coordinator sees
    every update.
    """
    if not rounds:
        return 0.0
    dp_event, accountant = _accountant([order for order in ORDERS if order >= 2])
    event = dp_event.PoissonSampledDpEvent(sampling, dp_event.GaussianDpEvent(multiplier))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accountant.compose(event, rounds)
    return float(accountant.get_epsilon(delta))


def _accountant(orders: list[float]) -> tuple[Any, Any]:
    """The library's events and an accountant; imported late, because it takes a second."""
    try:
        from dp_accounting import dp_event
        from dp_accounting.rdp import RdpAccountant
    except ImportError:
        raise MachineError(
            "dp-accounting is not installed", "install fedge with the extra `privacy`"
        ) from None
    return dp_event, RdpAccountant(orders=orders)
