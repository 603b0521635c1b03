"""Whether a plan may go on from the adapter that it names, as (severity, field, cause, remedy). (P-4.11)"""

from __future__ import annotations

from collections.abc import Iterator

from protocol.plan import Plan
from protocol.privacy.legality import Said

ANEW = "start anew, without [start]"


def said_of_start(plan: Plan) -> Iterator[Said]:
    """Of the start alone: whether a file fits is seen when it is read."""
    start = plan.start
    if start is None:
        return
    if start.settings != plan.adapter_settings:
        yield (
            "error",
            "adapter",
            "the adapter was trained with other settings: with these it would be another model",
            f"copy [adapter] of the plan before, or {ANEW}",
        )
    if plan.server.optimizer != "fedavg":
        yield (
            "note",
            "server.optimizer",
            f"the moments of `{plan.server.optimizer}` begin at zero",
            "",
        )
    yield from _privacy(plan)


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
