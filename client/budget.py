"""Whether a client's data may enter another sum: the plan's budget, its own limit. (P-7.5, P-7.7)"""

from __future__ import annotations

import math
from functools import reduce

from client.ledger import Account
from protocol.errors import PrivacyError
from protocol.plan import Plan
from protocol.privacy.accounting import Spent, epsilon
from protocol.privacy.ledger import Tally, verify_affordable

LIMIT_DELTA = 1e-6  # of a client's own limit, whatever a plan's delta is


def verify_budget(plan: Plan, digest: str, name: str, cost: Spent, account: Account) -> None:
    """A sum of ``cost`` fits the budget of the plan with this digest. Raises PrivacyError.

    ``account`` is of the client's own entries, of any plan: of the runs that a plan goes on from it may say
    less than this client knows.
    """
    mine = account.plans.get(digest, Tally())
    verify_affordable(mine, name, plan.privacy, cost, plan.spent_before)
    if plan.start is not None:
        earlier = (
            account.plans.get(each, Tally()) for each in sorted({*plan.start.plans} - {digest})
        )
        own = reduce(Tally.plus, earlier, mine)
        any_number = plan.privacy.model_copy(update={"rounds_per_client": 0})
        verify_affordable(own, name, any_number, cost)


def verify_own_limit(limit: float, cost: Spent, account: Account) -> None:
    """A sum of ``cost`` fits ``limit``, epsilon over all runs and plans. Raises PrivacyError."""
    if not math.isfinite(limit):
        return
    after = epsilon(account.whole + cost, delta=LIMIT_DELTA)
    if after > limit:
        raise PrivacyError(
            f"over all runs this client would reach epsilon {after:.3f} at delta {LIMIT_DELTA:g}",
            f"its own limit is {limit:g}; its operator can raise it",
        )


def verify_limit(plan: Plan, limit: float) -> None:
    """A client with a limit takes part under noise that it adds itself. Raises PrivacyError."""
    if math.isfinite(limit) and plan.privacy.mechanism != "distributed":
        raise PrivacyError(
            f"this client's data may spend epsilon {limit:g}; the plan's noise is "
            f"{plan.privacy.mechanism}",
            'it takes part in plans with mechanism = "distributed", or without max-epsilon',
        )
