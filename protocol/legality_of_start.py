"""Whether a plan may go on from the adapter that it names, as (severity, field, cause, remedy). (P-4.11)"""

from __future__ import annotations

import math
from collections.abc import Iterator

from protocol.adapter import lora_scaling
from protocol.plan import Plan
from protocol.privacy.legality import Said
from protocol.rules import RuleContract
from protocol.start import Start
from protocol.step.state import global_rank

ANEW = "start anew, without [start]"


def said_of_start(plan: Plan, contract: RuleContract) -> Iterator[Said]:
    """Of the start alone: whether a file fits is seen when it is read."""
    start = plan.start
    if start is None:
        return
    rank = global_rank(plan)
    if contract.combine != "stack" and start.rank != rank:
        yield (
            "error",
            "start.rank",
            f"the adapter has rank {start.rank}, the plan trains rank {rank}",
            f"use adapter.rank = {start.rank} and adapter.alpha = {alpha_at(start.rank, start)}, or {ANEW}",
        )
    elif plan.adapter.method == "lora" and not _same(lora_scaling(plan), start.scaling):
        yield (
            "error",
            "adapter.alpha",
            f"alpha / rank is {lora_scaling(plan):g}, the adapter was trained with {start.scaling:g}: "
            "it would be another model",
            f"use adapter.alpha = {alpha_at(plan.adapter.rank, start)}, or {ANEW}",
        )
    if plan.server.optimizer != "fedavg":
        yield (
            "note",
            "server.optimizer",
            f"the moments of `{plan.server.optimizer}` begin at zero",
            "",
        )
    yield from _privacy(plan)


def alpha_at(rank: int, start: Start) -> str:
    """The alpha that keeps the adapter what it is at ``rank``, as a plan has it."""
    return repr(start.scaling * rank)


def _same(scaling: float, other: float) -> bool:
    return math.isclose(scaling, other, rel_tol=1e-12)


def _privacy(plan: Plan) -> Iterator[Said]:
    """An epsilon of this run holds for the runs before as well, or it is none."""
    before, privacy = plan.spent_before, plan.privacy
    if not plan.private:
        if before.mechanism != "none":
            yield (
                "warning",
                "privacy.mechanism",
                "the runs before had noise, this one has none: what they promised ends here",
                "",
            )
        return
    if before.mechanism != privacy.mechanism:
        noise = "no" if before.mechanism == "none" else before.mechanism
        yield (
            "error",
            "privacy.mechanism",
            f"the run before had {noise} noise: no epsilon holds for both",
            f'use mechanism = "{before.mechanism}", or {ANEW}',
        )
    elif privacy.mechanism == "central" and (before.noise_multiplier, before.sampling) != (
        privacy.noise_multiplier,
        privacy.sampling,
    ):
        yield (
            "error",
            "privacy.noise_multiplier",
            f"the runs before had noise_multiplier {before.noise_multiplier:g} and sampling "
            f"{before.sampling:g}; central noise is added up over rounds that are alike",
            "use the same two",
        )
