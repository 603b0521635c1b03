"""What a client sees to before it shares its seeds in a cohort. (P-6.7)"""

from __future__ import annotations

from bisect import bisect_left

from protocol.errors import SecrecyError
from protocol.secagg.graph import NO_SEED, degree, threshold
from protocol.secagg.messages import NO_INDEX, Advert, Cohort
from protocol.secagg.primitives import signature_is_valid
from protocol.secagg.states import STOP, Advertised, Policy


def check_cohort(state: Advertised, cohort: Cohort, policy: Policy) -> None:
    """A cohort this client may share its seeds in. Raises SecrecyError.

    Of its adverts a client checks those whose keys it will use, by :func:`check_advert`: the others are
    checked by those who use them.
    """
    ids = cohort.ids
    if list(ids) != sorted(set(ids)):
        raise SecrecyError("cohort.duplicate", "a client is listed twice or out of order", STOP)
    if len(ids) < policy.minimum:
        raise SecrecyError(
            "cohort.too-small", f"{len(ids)} clients, this one asks for {policy.minimum}", STOP
        )
    if len(ids) > policy.maximum:
        raise SecrecyError(
            "cohort.too-large", f"{len(ids)} clients, the plan has {policy.maximum} in a sum", STOP
        )
    at = bisect_left(ids, state.client)
    if ids[at : at + 1] != (state.client,) or cohort.adverts[at].encode() != state.advert:
        raise SecrecyError("cohort.own-advert", "this client's advert is altered or missing", STOP)
    for one in ids:
        if one not in policy.roster:
            raise SecrecyError("cohort.unknown-client", f"{one.hex()} is not in the roster", STOP)
    k = degree(len(ids))
    if cohort.degree != k or cohort.graph_seed != NO_SEED:
        raise SecrecyError("cohort.graph", f"the graph is not the rule's (k = {k})", STOP)
    if cohort.threshold != threshold(k):
        raise SecrecyError(
            "cohort.threshold", f"threshold {cohort.threshold}, the rule gives {threshold(k)}", STOP
        )
    if (cohort.alive_index == NO_INDEX) == bool(policy.log_policy):
        raise SecrecyError(
            "cohort.mode",
            "an alive set from a witnessed log where the plan asks for signatures, or the reverse",
            STOP,
        )


def check_advert(advert: Advert, state: Advertised, policy: Policy) -> None:
    """Signed for this attempt by a client of the roster. Raises SecrecyError."""
    name, public = advert.client.hex(), policy.roster.get(advert.client)
    if public is None:
        raise SecrecyError("cohort.unknown-client", f"{name} is not in the roster", STOP)
    if (advert.sid, advert.seq) != (state.sid, state.seq):
        raise SecrecyError("advert.other-attempt", f"{name}'s advert is of another attempt", STOP)
    if not signature_is_valid(public, "advert", advert.body, advert.signature):
        raise SecrecyError("advert.signature", f"{name}'s advert is not signed by it", STOP)
