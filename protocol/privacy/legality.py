"""What differential privacy asks of a plan, as (severity, field, cause, remedy). (P-7.4)"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from protocol.methods import method_of
from protocol.plan import Plan
from protocol.privacy.planned import (
    mechanism_of,
    noise_to_signal,
    planned_epsilon,
    rounds_counted,
)
from protocol.rules import AggregationRule, exact_instead

Said = tuple[Literal["error", "warning", "note"], str, str, str]
LEAST_SIGMA, MOST_SIGMA = 0.5, 20_000.0  # in steps of the grid; the table grows with it
DROWNED = 4.0  # noise over signal of a round's mean


def said_of(plan: Plan, rule: AggregationRule) -> Iterator[Said]:
    """What can be said without the base."""
    if not plan.private:
        yield "note", "privacy.mechanism", "no differential privacy: the sum itself may leak", ""
        return
    yield from (_distributed if plan.privacy.mechanism == "distributed" else _central)(plan)
    yield from _leaks(plan, rule)
    if plan.privacy.delta * plan.cohort.asked > 1:
        yield "warning", "privacy.delta", "delta is above 1 over the number of clients", "lower it"


def _distributed(plan: Plan) -> Iterator[Said]:
    """Of noise that clients add, each its share."""
    privacy = plan.privacy
    if plan.secrecy.exchange != "secagg":
        yield (
            "error",
            "privacy.mechanism",
            "clients' shares of the noise protect a sum only",
            'use exchange = "secagg", or mechanism = "central" for plaintext research',
        )
    if plan.secrecy.groups > 1 and not privacy.allow_groups:
        yield (
            "error",
            "secrecy.groups",
            f"{plan.secrecy.groups} groups have {plan.secrecy.groups**0.5:.1f} times the noise",
            "use groups = 1, or accept it with privacy.allow_groups = true",
        )
    if plan.least_sum - privacy.corrupt < 2:
        yield (
            "error",
            "privacy.corrupt",
            f"a quorum of {plan.cohort.quorum} without {privacy.corrupt} corrupt clients is "
            "fewer than two that add noise",
            "raise the quorum",
        )
    if privacy.sampling:
        yield (
            "error",
            "privacy.sampling",
            "no amplification: the coordinator knows who takes part",
            'remove it; it is for mechanism = "central"',
        )


def _central(plan: Plan) -> Iterator[Said]:
    """Of noise that the coordinator adds, to Poisson samples."""
    privacy = plan.privacy
    if plan.secrecy.exchange != "plain":
        yield (
            "error",
            "privacy.mechanism",
            "central noise is added by a coordinator that sees every update",
            'use mechanism = "distributed"',
        )
    if not privacy.sampling:
        yield "error", "privacy.sampling", "it is 0: nobody would ever be drawn", "up to 1"
    if plan.cohort.quorum != 1:
        yield (
            "error",
            "cohort.quorum",
            "drawing again below a quorum is no Poisson sampling: an empty sample is a round of noise",
            "use quorum = 1; cohort.size is the number of clients to expect",
        )
    if plan.cohort.spare:
        yield (
            "error",
            "cohort.spare",
            "a round that closes with the fastest is no Poisson sample: the noise is reckoned for one",
            'remove it, or use mechanism = "distributed"',
        )
    if privacy.rounds_per_client or privacy.corrupt:
        field = "rounds_per_client" if privacy.rounds_per_client else "corrupt"
        yield (
            "error",
            f"privacy.{field}",
            "it has no meaning under secret Poisson samples",
            "remove it",
        )


def _leaks(plan: Plan, rule: AggregationRule) -> Iterator[Said]:
    if plan.cohort.weighting != "uniform":
        yield (
            "error",
            "cohort.weighting",
            "weights by examples exceed the sensitivity that the noise is made for",
            'use weighting = "uniform"',
        )
    if plan.evaluation.holdout:
        yield (
            "error",
            "evaluation.holdout",
            "results on clients' data are not covered by the noise",
            "use holdout = 0 and measure on public data",
        )
    method = method_of(plan.adapter)
    if not rule.exact(method):
        yield (
            "error",
            "rule.name",
            f"rule `{rule.name}` is not linear in what clients send: noise would multiply",
            exact_instead(method),
        )


def said_with_sizes(plan: Plan, sizes: Sequence[int]) -> Iterator[Said]:
    """What needs the number of coordinates in each phase."""
    privacy = plan.privacy
    if privacy.mechanism == "distributed" and (wrong := _unusable(plan, sizes)):
        yield "error", "privacy.noise_multiplier", wrong, "change noise_multiplier or clip"
        return
    yield from _over_selection(plan, sizes)
    spent, rounds = planned_epsilon(plan, sizes), rounds_counted(plan)
    if spent > privacy.epsilon:
        yield (
            "error",
            "privacy.epsilon",
            f"{rounds} rounds per client spend epsilon {spent:.2f} at delta {privacy.delta:g}, "
            f"the budget is {privacy.epsilon:g}",
            "more noise, fewer rounds, rounds_per_client, or a larger budget",
        )
    ratio = noise_to_signal(plan, sizes)
    if ratio > DROWNED:
        yield (
            "warning",
            "privacy.noise_multiplier",
            f"a round's noise is at least {ratio:.1f} times its signal ({max(sizes)} numbers, "
            f"{plan.cohort.size} clients)",
            "train fewer numbers (lora-sb, bias, a short prompt) or ask more clients",
        )
    else:
        yield (
            "note",
            "privacy.noise_multiplier",
            f"noise over signal of a round: {ratio:.2f} at best; epsilon after {rounds} rounds "
            f"{spent:.2f}",
            "",
        )


def _over_selection(plan: Plan, sizes: Sequence[int]) -> Iterator[Said]:
    """What clients to spare cost in the accounts: nothing but room in the ring. (P-7.4)"""
    if not plan.cohort.spare or plan.privacy.mechanism != "distributed":
        return
    alone = plan.model_copy(update={"cohort": plan.cohort.model_copy(update={"spare": 0})})
    bits, without = (
        max(mechanism_of(each, size=size).bits for size in sizes) for each in (plan, alone)
    )
    more = f", {without} without clients to spare" if bits != without else ""
    yield (
        "note",
        "cohort.spare",
        "a client that is not waited for is in no sum and spends nothing of its budget; noise and epsilon "
        f"are those of the quorum, the ring has {bits} bits{more}",
        "",
    )


def _unusable(plan: Plan, sizes: Sequence[int]) -> str:
    """Why clients could not make the noise: of the grid too little, or a table too large."""
    for size in sizes:
        made = mechanism_of(plan, size=size)
        if not made.grid:
            return "the clip is too small for its grid"
        if not LEAST_SIGMA <= float(made.sigma) <= MOST_SIGMA:
            return f"a client's noise is {float(made.sigma):.2g} steps of the grid"
        if made.ring_bits is None:
            return "the noisy sum needs more than 32 bits"
    return ""
