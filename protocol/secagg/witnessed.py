"""One alive set by its place in a witnessed log: instead of the clients' signatures on it. (P-6.16)

Shares open only between clients with one ``xid``, and ``xid`` holds the index of the leaf with the alive
set. A tree has one leaf there and witnesses admit one tree, so all holders of a client's shares who
check this see the same set; a split view that would open both seeds of a client is not possible.
"""

from __future__ import annotations

from protocol.errors import ProofError, SecrecyError
from protocol.secagg.client import check_alive
from protocol.secagg.messages import decode_ids
from protocol.secagg.states import STOP, Agreed, Masked, Policy
from protocol.transparency.leaf_codec import decode_leaf, verify_author
from protocol.transparency.leaves import Alive
from protocol.transparency.offline import OfflineProof, parse_offline_proof
from protocol.transparency.policy import parse_policy


def agree_by_log(state: Masked, message: bytes, *, policy: Policy) -> Agreed:
    """Check that the alive set of this very round lies at its index under a quorum of witnesses.

    ``message`` is a C2SP tlog-proof whose extra data is the leaf. Raises SecrecyError.
    """
    try:
        proof = parse_offline_proof(message.decode())
        leaf = _verified(proof, policy)
    except (ProofError, UnicodeDecodeError) as error:
        cause = error.cause if isinstance(error, ProofError) else "the proof is not text"
        raise SecrecyError("alive.proof", cause, STOP) from None
    if proof.index != state.alive_index:
        raise SecrecyError(
            "alive.index", f"leaf {proof.index}, planned was {state.alive_index}", STOP
        )
    if leaf.rid != state.rid.hex():
        raise SecrecyError("alive.other-round", "the leaf is about another round", STOP)
    alive = decode_ids(bytes.fromhex("".join(leaf.clients)), "alive")
    check_alive(state, alive, policy)
    return Agreed(before=state, alive=alive)


def _verified(proof: OfflineProof, policy: Policy) -> Alive:
    if proof.extra is None:
        raise ProofError("the proof comes without its leaf", STOP)
    trusted = parse_policy(policy.log_policy)
    proof.verify(proof.extra, trusted)
    read = decode_leaf(proof.extra)
    verify_author(read, *(log.public for log in trusted.logs))
    if not isinstance(read.leaf, Alive):
        raise ProofError(f"the leaf at that place is `{read.leaf.kind}`", STOP)
    return read.leaf
