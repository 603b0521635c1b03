"""What a plan's privacy section means in numbers: the noise of a round, and what rounds cost. (P-7.4)"""

from __future__ import annotations

import math
from collections.abc import Sequence

from protocol.manifests import AnyManifest
from protocol.plan import Plan
from protocol.privacy.accounting import Spent, epsilon, sampled_epsilon
from protocol.privacy.distributed import Mechanism
from protocol.recipe import Recipe

NO_ROTATION = bytes(32)  # costs do not hang on it


def mechanism_of(plan: Plan, *, size: int, rotation: bytes = NO_ROTATION) -> Mechanism:
    """The distributed noise of a round whose update has ``size`` coordinates.

    It hangs on the plan alone, not on who is there: noise is set for the quorum without the corrupt,
    the ring for the whole cohort.
    """
    return Mechanism(
        size=size,
        clip=plan.privacy.clip,
        multiplier=plan.privacy.noise_multiplier,
        honest=plan.least_sum - plan.privacy.corrupt,
        summands=plan.largest_sum,
        rotation=rotation,
    )


def round_sizes(plan: Plan, manifest: AnyManifest) -> tuple[int, ...]:
    """Coordinates of an update in each phase of the plan's rule."""
    recipe = Recipe(plan=plan, manifest=manifest)
    numbers = range(1, len(recipe.phases) + 1)
    return tuple(recipe.round_layout(number).size for number in numbers)


def rounds_counted(plan: Plan) -> int:
    """The most rounds that one client's data enters."""
    return min(plan.privacy.rounds_per_client or plan.rounds, plan.rounds)


def planned_epsilon(plan: Plan, sizes: Sequence[int]) -> float:
    """Epsilon of a client that takes part as often as the plan allows; no attempt fails late.

    With what counts as spent in the runs before.
    """
    privacy, rounds, before = plan.privacy, rounds_counted(plan), plan.spent_before
    if privacy.mechanism == "central":
        return sampled_epsilon(
            before.sums + rounds,
            multiplier=privacy.noise_multiplier,
            sampling=privacy.sampling,
            delta=privacy.delta,
        )
    often, rest = divmod(rounds, len(sizes))
    total = Spent(rho=before.rho, xi=before.xi)
    for phase, size in enumerate(sizes):
        cost = mechanism_of(plan, size=size).spent()
        total += cost.times(often + (phase < rest))
    return epsilon(total, delta=privacy.delta)


def noise_to_signal(plan: Plan, sizes: Sequence[int]) -> float:
    """The noise of a round's mean over the norm of updates that all agree, at the clip."""
    groups = math.sqrt(plan.secrecy.groups)
    return groups * plan.privacy.noise_multiplier * math.sqrt(max(sizes)) / plan.cohort.size
