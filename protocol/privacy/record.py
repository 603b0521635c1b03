"""What a round's record and the report say of the privacy that was spent. (P-7.5)"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from protocol.plan import Plan
from protocol.privacy.ledger import Tally, client_epsilon


def privacy_record(plan: Plan, tally: Tally) -> dict[str, Any]:
    """The largest epsilon of a client so far, by which noise; of all lines of the ledger until then.

    A run that goes on from another counts what was spent there.
    """
    privacy = plan.privacy
    names = set(tally.clients)
    if privacy.mechanism == "central" and tally.count:
        names.add("")  # every round counts for everybody, also one whose sample was empty
    before = plan.spent_before
    if plan.start is not None:
        names.add("")  # also for who has not taken part yet
    spent = [client_epsilon(tally, name, privacy, before) for name in _foremost(tally, names)]
    last = tally.last
    return {
        "mechanism": privacy.mechanism,
        "unit": "one client's whole update",
        "epsilon": max(spent, default=0.0),
        "delta": privacy.delta,
        "budget": privacy.epsilon,
        "clip": privacy.clip,
        "noise_multiplier": privacy.noise_multiplier,
        "noise_of_the_sum": privacy.clip * privacy.noise_multiplier,
        "sums": tally.count,
        "rho": last.rho if last else None,
        "xi": last.xi if last else None,
        "honest": last.honest if last else None,
    }


def _foremost(tally: Tally, names: Iterable[str]) -> Iterator[str]:
    """Those of ``names`` than whom nobody has spent more in both parts: epsilon grows with either."""
    most = -1.0
    for name in sorted(names, key=lambda each: _parts(tally, each), reverse=True):
        if tally.spent(name).xi > most:
            most = tally.spent(name).xi
            yield name


def _parts(tally: Tally, name: str) -> tuple[float, float]:
    return tally.spent(name).rho, tally.spent(name).xi
