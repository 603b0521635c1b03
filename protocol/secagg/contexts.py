"""What keys are bound to: the attempt, the shares, the round. (P-6.6)

Three contexts, because adverts and shares may be exchanged before the input adapter is known. The
masks hang on the round's terms, hence on base, adapter, members and parameters: clients that were
given different ones derive masks that do not cancel.
"""

from __future__ import annotations

from typing import Any

from protocol.encoding import canonical_json
from protocol.secagg.messages import Cohort
from protocol.secagg.primitives import tagged_hash


def session_id(plan_digest: str, run_id: bytes) -> bytes:
    """``sid``: a plan (64 hex digits) and a run (16 random bytes)."""
    return tagged_hash("run", bytes.fromhex(plan_digest) + run_id)


def attempt_context(sid: bytes, seq: int) -> bytes:
    """``actx``: one attempt of a run; ``seq`` only grows, a failed attempt uses its number up."""
    return sid + seq.to_bytes(8, "big")


def share_context(attempt: bytes, cohort: Cohort) -> bytes:
    """``xid``: the attempt with its members, graph and thresholds."""
    return tagged_hash(
        "share-ctx",
        attempt
        + cohort.root
        + cohort.graph_seed
        + cohort.degree.to_bytes(2, "big")
        + cohort.threshold.to_bytes(2, "big")
        + cohort.alive_index.to_bytes(8, "big"),
    )


def round_id(xid: bytes, members: bytes, terms: dict[str, Any]) -> bytes:
    """``rid``: xid, U2 (its sorted ids) and the terms, which each side computes for itself."""
    return tagged_hash("round", xid + tagged_hash("u2", members) + canonical_json(terms))
