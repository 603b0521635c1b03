"""Epsilon of what was spent, by Google's dp-accounting. (P-7.3)"""

from __future__ import annotations

from collections.abc import Iterable

ORDERS = [1.25, 1.5, 1.75, *range(2, 129), 160, 192, 256, 512]


def epsilon(spent: Iterable[tuple[float, float]], *, delta: float) -> float:
    """Epsilon at ``delta`` of rounds that spent (rho, xi) each; 0 for none.

    Neighbours differ in one client's update set to zero. Every attempt in which a share was revealed
    counts, whether or not an adapter came of it.
    """
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(orders=ORDERS)
    for rho, xi in spent:
        accountant.compose(dp_event.ZCDpEvent(rho=rho, xi=xi))
    return float(accountant.get_epsilon(delta))
