"""Whether what a plan releases makes sense, as (severity, field, cause, remedy). (P-5.3, P-5.6)"""

from __future__ import annotations

from collections.abc import Iterator

from protocol.initial import ONES
from protocol.plan import Plan
from protocol.privacy.legality import Said
from protocol.recipe import Recipe

LOOSE_PARITY = 0.01  # logits: further apart two engines are not one model any more
KEEP = "release.keep"


def said_of_release(plan: Plan) -> Iterator[Said]:
    """Of the plan alone."""
    if plan.release.parity_max_absolute > LOOSE_PARITY:
        yield (
            "warning",
            "release.parity_max_absolute",
            f"logits that are {plan.release.parity_max_absolute:g} away pass, and may give other labels",
            f"leave it at 0, which follows the rows, or take at most {LOOSE_PARITY:g}",
        )


def said_of_release_on(recipe: Recipe) -> Iterator[Said]:
    """Of the plan on its base. Raises PlanError for a target that is not there."""
    keep, method = recipe.plan.release.keep, recipe.plan.adapter.method
    if keep == 1:
        return
    if not recipe.prunable:
        yield (
            "error",
            KEEP,
            f"method `{method}` publishes a head alone, which stays whole",
            "leave it out, or train more than the head",
        )
    elif factor := next((spec.name for spec in recipe.prunable if spec.law == ONES), ""):
        yield (
            "error",
            KEEP,
            f"{factor} of method `{method}` scales what it meets: 1 leaves that as it is, and 0 silences it",
            "leave it out, or use a method of which 0 leaves the base as it is, such as `lora`",
        )
    else:
        yield (
            "note",
            KEEP,
            "what clients measure between rounds is the whole adapter, which training goes on from",
            "`fedge release` measures what is sent",
        )
