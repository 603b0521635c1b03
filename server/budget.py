"""Who may still take part, and what a sum costs: the plan's privacy budget over the run's ledger. (P-7.5)"""

from __future__ import annotations

from collections.abc import Iterable

from protocol.errors import PrivacyError
from protocol.plan import Plan
from protocol.privacy.accounting import Spent
from protocol.privacy.ledger import (
    Entry,
    Tally,
    central_numbers,
    distributed_numbers,
    verify_affordable,
)
from protocol.privacy.planned import mechanism_of


def exhausted(plan: Plan, tally: Tally, names: Iterable[str], size: int) -> dict[str, str]:
    """Clients whose budget one more sum of ``size`` coordinates would exceed, with the reason."""
    found: dict[str, str] = {}
    cost = _cost(plan, size)
    for name in sorted(names):
        try:
            verify_affordable(tally, name, plan.privacy, cost, plan.spent_before)
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
