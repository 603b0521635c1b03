"""Whether updates that came too late may enter a later sum, as (severity, field, cause, remedy). (P-4.14)"""

from __future__ import annotations

from collections.abc import Iterator

from protocol.plan import Plan
from protocol.privacy.legality import Said
from protocol.recipe import Recipe
from protocol.transparency.lists import INLINE_UP_TO

FIELD, WITHOUT = "cohort.late_rounds", "late_rounds = 0, or "


def said_of_late(plan: Plan) -> Iterator[Said]:
    """Of the plan alone."""
    if not plan.cohort.late_rounds:
        return
    if plan.secrecy.exchange != "secagg":
        yield (
            "error",
            FIELD,
            "in clear no log tells a client whether its update was counted",
            WITHOUT + 'use secrecy.exchange = "secagg"',
        )
    if plan.local.scaffold:
        yield (
            "error",
            FIELD,
            "control variates follow what a round moved by the adapter that it began with",
            WITHOUT + "leave out `local.scaffold`",
        )
    if plan.least_sum > INLINE_UP_TO:
        yield (
            "warning",
            FIELD,
            f"leaves of sums of more than {INLINE_UP_TO} clients do not name them: only of attempts that "
            "failed a client learns that its update is in no sum",
            "late_rounds = 0, or more groups",
        )
    if plan.server.optimizer != "fedavg":
        yield (
            "warning",
            "server.optimizer",
            f"`{plan.server.optimizer}` goes on for rounds in the direction of an update that is old already",
            'with late updates use "fedavg" (docs/results.md)',
        )
    yield (
        "note",
        FIELD,
        f"a sum may have updates that were trained on an adapter of up to {plan.cohort.late_rounds} rounds "
        "before; each is in one sum at most, and spends what that sum spends",
        "late_rounds = 0 leaves them out",
    )


def said_of_late_on(recipe: Recipe) -> Iterator[Said]:
    """Of the plan on its base."""
    if recipe.plan.cohort.late_rounds and len(recipe.phases) > 1:
        yield (
            "error",
            FIELD,
            f"rounds of rule `{recipe.plan.rule.name}` train one part after the other: an update fits none "
            "but its own",
            WITHOUT + "use a rule, method and head of which every round trains all",
        )
