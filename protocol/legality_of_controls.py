"""Whether a plan's clients may correct their training, as (severity, field, cause, remedy). (P-4.13)"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from protocol.methods import method_of
from protocol.plan import Plan
from protocol.privacy.legality import Said
from protocol.recipe import Recipe

FIELD, WITHOUT = "local.scaffold", "leave it out, or "


def said_of_controls(plan: Plan) -> Iterator[Said]:
    """Of the plan alone."""
    if not plan.local.scaffold:
        return
    if plan.server.optimizer != "fedavg":
        yield (
            "error",
            FIELD,
            f"under `{plan.server.optimizer}` what a round moves is not its clients' mean",
            WITHOUT + 'use server.optimizer = "fedavg"',
        )
    if plan.private:
        yield (
            "error",
            FIELD,
            "what a round moves is mostly noise there, which clients would train after",
            WITHOUT + "use proximal_mu",
        )
    if method_of(plan.adapter).ranks_used(plan.adapter, np.random.default_rng(0)) is not None:
        yield (
            "error",
            FIELD,
            f"steps of method `{plan.adapter.method}` train some of the ranks, a correction moves all",
            WITHOUT + "use another method",
        )


def said_of_controls_on(recipe: Recipe) -> Iterator[Said]:
    """Of the plan on its base."""
    if recipe.plan.local.scaffold and recipe.encoder_size:
        yield (
            "error",
            FIELD,
            "a network gives the rows of the prompt: they are not moved themselves",
            WITHOUT + 'use adapter.encoder = "none"',
        )
