"""What secure aggregation asks of a plan, as (severity, field, cause, remedy). (P-6.3, P-6.14, P-8.7)"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from math import exp, lgamma
from operator import gt

from protocol.plan import Plan
from protocol.plan_sections import Secrecy
from protocol.privacy.legality import Said
from protocol.secagg.agreement import Keys
from protocol.secagg.graph import (
    COMPLETE_UP_TO,
    LEAST_SUMMANDS,
    alive_quorum,
    degree,
    is_complete,
    threshold,
)
from protocol.transparency.lists import INLINE_UP_TO
from protocol.transparency.shown import MOST_CHARACTERS

MOST_SIGNED = 2000  # of one sum, where its clients sign who is in it, or its keys are hybrid
MOST_LOGGED = 10_000  # where a witnessed log says who is in it
CLIENT_BYTES, GROUP_BYTES, LEAF_ROOM = 35, 120, 48_000  # of ids by group in one leaf (P-8.5)
DIGEST_CLIENTS = 2  # room of as many has the digest of a list (P-8.19)
SELDOM = 0.01  # of the sums may be in vain
TAIL_BYTES = {
    Keys.X25519: 1600,
    Keys.HYBRID: 6400,
}  # of a client's leaves up to its vector, as a text


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
    yield from _sizes(plan)
    yield from _room(plan)
    if plan.secrecy.keys == "x25519":
        yield (
            "note",
            "secrecy.keys",
            "who records the messages and breaks X25519 one day reads single updates",
            'keys = "x25519+ml-kem-768" withstands that',
        )
    yield from _losses(plan)
    yield from _spare(plan)
    yield from _failures(plan)


def most_in_sum(plan: Plan) -> int:
    """Clients of one sum. (P-6.3)"""
    return MOST_LOGGED if plan.witnessed and Keys(plan.secrecy.keys) is Keys.X25519 else MOST_SIGNED


def _sizes(plan: Plan) -> Iterator[Said]:
    if plan.largest_sum > most_in_sum(plan):
        yield _too_many(plan)
    elif plan.largest_sum > COMPLETE_UP_TO and plan.privacy.mechanism == "distributed":
        yield (
            "error",
            "cohort.size",
            f"noise is reckoned for sums of at most {COMPLETE_UP_TO} clients, in which nobody can be apart",
            f"secrecy.groups = {max(3, -(-plan.cohort.asked // COMPLETE_UP_TO))} makes small enough sums",
        )


def _too_many(plan: Plan) -> Said:
    most = most_in_sum(plan)
    cause = f"a sum of more than {most} clients"
    remedy = f"secrecy.groups = {max(3, -(-plan.cohort.asked // most))} makes small enough sums"
    if plan.largest_sum > MOST_LOGGED:
        cause += ": nobody has measured whether it ends"
    elif not plan.witnessed:
        cause += (
            ", each of which would be sent the signatures of two thirds of them, and check them"
        )
        remedy += (
            f"; with `audit.witnesses` the log stands for signatures, up to {MOST_LOGGED} clients"
        )
    else:
        cause += (
            f" whose keys are {plan.secrecy.keys}: each would be sent all of them, 2.6 kB a client"
        )
        remedy += f'; with secrecy.keys = "x25519" up to {MOST_LOGGED} clients'
    return "error", "cohort.size", cause, remedy


def _failures(plan: Plan) -> Iterator[Said]:
    """Of an attempt that fails once its alive sets are logged all leaves stand in the log's tail. (P-8.10)"""
    each = TAIL_BYTES[Keys(plan.secrecy.keys)] * plan.cohort.asked
    failures = MOST_CHARACTERS // each
    if plan.witnessed and plan.cohort.attempts - 1 > failures:
        yield (
            "warning",
            "cohort.attempts",
            f"an attempt that fails once witnesses were asked puts up to {each / 1e6:.0f} MB before every "
            f"client of the next: they take {failures} of them at one round, and no more",
            "fewer clients in a round, and witnesses that are up",
        )


def _losses(plan: Plan) -> Iterator[Said]:
    """Whether sums over as few clients as the quorum asks for open at all. (P-6.8)"""
    size, k = plan.largest_sum, degree(plan.largest_sum)
    most = most_lost(size)
    if size - plan.least_sum <= most:
        return
    if is_complete(size):
        cause = f"with {size} clients no sum opens once {most + 1} {'are' if most else 'is'} lost"
        yield "warning", "cohort.quorum", cause, f"below {size - most} of them it is never enough"
    else:
        yield (
            "warning",
            "cohort.quorum",
            f"each of {size} clients needs {threshold(k)} of the {k} holders that it draws: with more than "
            f"{most} lost one sum in {1 / SELDOM:.0f} does not open, soon many",
            f"a quorum of {size - most} fails such a round at once",
        )


def _spare(plan: Plan) -> Iterator[Said]:
    """Whether a sum opens that closes without those to spare: they are lost to it. (P-4.5)"""
    if not plan.cohort.spare:
        return
    lost, most = _unawaited(plan, plan.cohort.spare)
    if lost > most:
        fits = bisect_left(
            range(plan.cohort.spare), True, key=lambda spare: gt(*_unawaited(plan, spare))
        )
        yield (
            "error",
            "cohort.spare",
            f"a sum of {plan.largest_sum} clients opens without {most} of them, not without {lost}",
            f"spare = {fits - 1} at most" if fits > 1 else "leave it out, or ask more clients",
        )
    elif lost == most:
        yield (
            "warning",
            "cohort.spare",
            f"a sum that closes without {lost} of {plan.largest_sum} clients opens only if nobody else is "
            "lost before it is unmasked: else the round is void",
            f"spare = {plan.cohort.spare - plan.secrecy.groups} leaves one to lose"
            if plan.cohort.spare > plan.secrecy.groups
            else "leave it out, or raise size",
        )


def _unawaited(plan: Plan, spare: int) -> tuple[int, int]:
    """Of a largest sum: how many it closes without, and how many it may be without."""
    cohort = plan.cohort.model_copy(update={"spare": spare})
    members = -(-cohort.asked // plan.secrecy.groups)
    return members - cohort.awaited(members, cohort.asked), most_lost(members)


def most_lost(clients: int) -> int:
    """Of so many how many may be lost after they shared, and the sum opens all the same.

    In a large cohort it depends on who: of so many lost at random, fewer than ``SELDOM`` of the sums are in
    vain, for any client's having fewer than a threshold of its holders left (the union bound of
    hypergeometric tails).
    """
    k = degree(clients)
    spare, most = k - threshold(k), clients - alive_quorum(clients)
    if is_complete(clients):
        return min(spare, most)

    def in_vain(lost: int) -> bool:
        others = clients - 1
        tail = sum(
            exp(_choose(lost, at) + _choose(others - lost, k - at) - _choose(others, k))
            for at in range(max(spare + 1, k - others + lost), min(k, lost) + 1)
        )
        return clients * tail > SELDOM

    return bisect_left(range(most + 1), True, key=in_vain) - 1


def _choose(total: int, part: int) -> float:
    """Logarithm of the binomial coefficient."""
    return lgamma(total + 1) - lgamma(part + 1) - lgamma(total - part + 1)


def _room(plan: Plan) -> Iterator[Said]:
    """Sums of up to 128 clients are named in leaves, those of a failed attempt all in one. (P-8.7)"""
    groups = plan.secrecy.groups
    room = (LEAF_ROOM - GROUP_BYTES * groups) // CLIENT_BYTES
    each = INLINE_UP_TO if plan.least_sum <= INLINE_UP_TO else DIGEST_CLIENTS
    if min(plan.cohort.asked, groups * each) > room:
        yield (
            "error",
            "cohort.size",
            f"one leaf of the run's log names all clients of an attempt that failed: {room} in "
            f"{plan.secrecy.groups} groups",
            f"fewer groups, each with a quorum above {INLINE_UP_TO}, or several plans, each with "
            "`cohort.clients` of its own",
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
