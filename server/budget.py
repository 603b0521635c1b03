"""Who may still take part, and what a sum costs: the plan's privacy budget over the run's ledger. (P-7.5)"""

from __future__ import annotations

from collections.abc import Iterable

from protocol.errors import PrivacyError
from protocol.plan import Plan
from protocol.privacy.accounting import Spent
from protocol.privacy.ledger import (
    Entry,
    central_numbers,
    client_epsilon,
    distributed_numbers,
    verify_affordable,
)
from protocol.privacy.planned import mechanism_of
from server.store import Record


def exhausted(plan: Plan, entries: list[Entry], names: Iterable[str], size: int) -> dict[str, str]:
    """Clients whose budget one more sum of ``size`` coordinates would exceed, with the reason."""
    found: dict[str, str] = {}
    cost = _cost(plan, size)
    for name in sorted(names):
        try:
            verify_affordable(entries, name, plan.privacy, cost)
        except PrivacyError as error:
            found[name] = error.cause
    return found


def _cost(plan: Plan, size: int) -> Spent:
    if plan.privacy.mechanism == "central":
        return Spent()
    return mechanism_of(plan, size=size).spent()


def entry_for(
    plan: Plan,
    *,
    digest: str,
    run: str,
    sequence: int,
    group: int,
    number: int,
    attempt: int,
    participants: Iterable[str],
    size: int,
) -> Entry:
    """The ledger's line for a sum of ``size`` coordinates over ``participants``."""
    if plan.privacy.mechanism == "central":
        numbers = central_numbers(plan.privacy, size)
    else:
        numbers = distributed_numbers(mechanism_of(plan, size=size))
    return Entry.model_validate(
        {
            "plan": digest,
            "run": run,
            "sequence": sequence,
            "group": group,
            "round": number,
            "attempt": attempt,
            "participants": sorted(participants),
            **numbers,
        }
    )


def privacy_record(plan: Plan, entries: list[Entry]) -> Record:
    """What a round's record says: the largest epsilon of a client so far, and by which noise."""
    privacy = plan.privacy
    names = {name for entry in entries for name in entry.participants}
    if privacy.mechanism == "central" and entries:
        names.add("")  # every round counts for everybody, also one whose sample was empty
    spent = [client_epsilon(entries, name, privacy) for name in sorted(names)]
    last = entries[-1] if entries else None
    return {
        "mechanism": privacy.mechanism,
        "unit": "one client's whole update",
        "epsilon": max(spent, default=0.0),
        "delta": privacy.delta,
        "budget": privacy.epsilon,
        "clip": privacy.clip,
        "noise_multiplier": privacy.noise_multiplier,
        "noise_of_the_sum": privacy.clip * privacy.noise_multiplier,
        "sums": len(entries),
        "rho": last.rho if last else None,
        "xi": last.xi if last else None,
        "honest": last.honest if last else None,
    }
