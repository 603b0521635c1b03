"""What secure aggregation asks of a plan, as (severity, field, cause, remedy). (P-6.3, P-6.14, P-8.7)"""

from __future__ import annotations

from collections.abc import Iterator

from protocol.plan import Plan
from protocol.plan_sections import Secrecy
from protocol.privacy.legality import Said
from protocol.secagg.graph import (
    COMPLETE_UP_TO,
    LEAST_SUMMANDS,
    alive_quorum,
    degree,
    is_complete,
    threshold,
)

MOST_IN_SUM = 2000
LIKELY_LOSSES = 18  # of a hundred: above that some client's holders are too few in many sums
CLIENT_BYTES, GROUP_BYTES, LEAF_ROOM = 35, 120, 48_000  # of ids by group in one leaf (P-8.5)


def said_of_secrecy(plan: Plan) -> Iterator[Said]:
    """What secure aggregation asks of a plan."""
    if plan.cohort.weighting != "uniform":
        yield (
            "error",
            "cohort.weighting",
            "under secure aggregation every client counts alike: weights are private",
            'use weighting = "uniform"',
        )
    if plan.least_sum < LEAST_SUMMANDS:
        yield (
            "error",
            "cohort.quorum",
            f"a sum of fewer than {LEAST_SUMMANDS} updates is no secret",
            f"at least {LEAST_SUMMANDS}" + (" for each group" if plan.secrecy.groups > 1 else ""),
        )
    if plan.secrecy.groups == 2:
        yield (
            "error",
            "secrecy.groups",
            "of two groups nobody can tell which one is wrong",
            "at least 3, or 1",
        )
    if plan.largest_sum > MOST_IN_SUM:
        yield (
            "error",
            "cohort.size",
            f"a sum of more than {MOST_IN_SUM} clients: nobody has measured whether it ends",
            f"secrecy.groups = {max(3, -(-plan.cohort.size // MOST_IN_SUM))} makes small enough sums",
        )
    elif plan.largest_sum <= COMPLETE_UP_TO:
        yield from _room(plan)
    elif plan.privacy.mechanism == "distributed":
        yield (
            "error",
            "cohort.size",
            f"noise is reckoned for sums of at most {COMPLETE_UP_TO} clients, in which nobody can be apart",
            f"secrecy.groups = {max(3, -(-plan.cohort.size // COMPLETE_UP_TO))} makes small enough sums",
        )
    if plan.secrecy.keys == "x25519":
        yield (
            "note",
            "secrecy.keys",
            "who records the messages and breaks X25519 one day reads single updates",
            'keys = "x25519+ml-kem-768" withstands that',
        )
    yield from _losses(plan)


def _losses(plan: Plan) -> Iterator[Said]:
    """How many clients may be lost before no sum opens, and what the quorum expects. (P-6.8)"""
    size, k = plan.largest_sum, degree(plan.largest_sum)
    missing = size - plan.least_sum
    spare = min(k - threshold(k), size - alive_quorum(size))
    if is_complete(size) and missing > spare:
        yield (
            "warning",
            "cohort.quorum",
            f"with {size} clients no sum opens once {spare + 1} {'are' if spare else 'is'} lost",
            f"below {size - spare} of them it is never enough",
        )
    elif not is_complete(size) and missing > (likely := size * LIKELY_LOSSES // 100):
        yield (
            "warning",
            "cohort.quorum",
            f"each of {size} clients needs {threshold(k)} of the {k} holders that it draws: with more than "
            f"{likely} lost many sums do not open",
            f"a quorum of {size - likely} fails such a round at once",
        )


def _room(plan: Plan) -> Iterator[Said]:
    """Clients of small sums are named in leaves, those of a failed attempt all in one. (P-8.7)"""
    room = (LEAF_ROOM - GROUP_BYTES * plan.secrecy.groups) // CLIENT_BYTES
    if plan.cohort.size > room:
        yield (
            "error",
            "cohort.size",
            f"one leaf of the run's log names all clients of an attempt that failed: {room} in "
            f"{plan.secrecy.groups} groups",
            "groups of more than 128 clients, or several plans, each with `cohort.clients` of its own",
        )


def said_of_groups(secrecy: Secrecy) -> Iterator[Said]:
    """How groups become one update."""
    if secrecy.combination == "geometric-median" and secrecy.trim != 1:
        yield (
            "error",
            "secrecy.trim",
            "the geometric median trims nothing: it leaves out groups that are far",
            'leave it out, or use combination = "trimmed-mean"',
        )
    if secrecy.combination == "trimmed-mean" and secrecy.groups <= 2 * secrecy.trim:
        yield (
            "error",
            "secrecy.trim",
            f"of {secrecy.groups} group(s) nothing is left without {secrecy.trim} at either end",
            f"groups = {2 * secrecy.trim + 1} at least, or trim less",
        )
