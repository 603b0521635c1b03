"""Sites that withdraw: their requests become leaves, and nobody asks them again. (P-8.18)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from protocol.errors import ProofError, printable
from protocol.secagg.contexts import session_id
from protocol.secagg.primitives import client_id
from protocol.transparency.leaf_codec import decode_leaf
from protocol.transparency.leaves import PlanLeaf, Request, Roster, Withdrawal
from protocol.transparency.submissions import verify_request
from protocol.transparency.withdrawal import TELLING, Effect, effect_of
from server.leaves import Leaves

if TYPE_CHECKING:
    from server.roster import Roster as Present

OTHER = "the request is of another run; give each coordinator the request that is of its run"


def verify_withdraws(log: Leaves, request: Request, public: bytes) -> None:
    """A request that the client's raw key ``public`` signed may stand behind the leaves of ``log``.

    Raises ProofError for a false signature, a request of another run, a client that has withdrawn already.
    """
    verify_request(request, public)
    first = decode_leaf(log.entry(0)).leaf
    assert isinstance(first, PlanLeaf)
    sid = session_id(first.plan, bytes.fromhex(first.run)).hex()
    if (request.origin, request.sid) != (log.origin, sid):
        raise ProofError(
            f"a withdrawal from {printable(request.origin)}, this log is {log.origin}"
            if request.origin != log.origin
            else "a withdrawal from another run of this log's name",
            OTHER,
        )
    if (index := withdrawn(log).get(request.client)) is not None:
        raise ProofError(
            f"{request.client} has withdrawn already: leaf {index}", "nothing is left to do"
        )


def effect(log: Leaves, client: str) -> Effect:
    """What ``client`` (its id in hex) is in, by the whole log."""
    indices = sorted(index for kind in TELLING for index in log.find(kind))
    return effect_of(((index, log.whole(index)) for index in indices), {client})


def withdrawn(log: Leaves) -> dict[str, int]:
    """Who has withdrawn (ids in hex), with the leaf that says so."""
    return {leaf.request.client: index for index, leaf in _withdrawals(log)}


def without_withdrawn(present: Present, log: Leaves, keys: Mapping[str, bytes]) -> Present:
    """``present`` without those of ``keys`` (raw, by name) that have withdrawn: they are kept out."""
    leaves = withdrawn(log)
    gone = {
        name: f"has withdrawn: leaf {leaves[client]}"
        for name, key in keys.items()
        if (client := client_id(key).hex()) in leaves
    }
    nodes = {name: node for name, node in present.nodes.items() if name not in gone}
    return replace(present, nodes=nodes, kept_out=present.kept_out | gone)


def verify_names_clients(log: Leaves) -> None:
    """The log says who was in a sum. Raises ProofError."""
    if not log.find(Roster):
        raise ProofError(
            "updates of this run went in clear: its log names no client",
            "the coordinator's records, rounds/NNNN/record.json, are all that says who was used",
        )


def leaf_of(log: Leaves, request: Request) -> int | None:
    """Where this very request stands in the log."""
    return next((index for index, leaf in _withdrawals(log) if leaf.request == request), None)


def _withdrawals(log: Leaves) -> Iterator[tuple[int, Withdrawal]]:
    for index in log.find(Withdrawal):
        leaf = decode_leaf(log.entry(index)).leaf
        assert isinstance(leaf, Withdrawal)
        yield index, leaf
