"""One alive set by its place in a witnessed log: instead of the clients' signatures on it. (P-6.16)

Shares open only between clients with one ``xid``, and ``xid`` holds the index of the leaf with the alive
set. A tree has one leaf there and witnesses admit one tree, so all holders of a client's shares who
check this see the same set; a split view that would open both seeds of a client is not possible.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from protocol.errors import ProofError, SecrecyError
from protocol.secagg.client import check_alive
from protocol.secagg.graph import is_complete
from protocol.secagg.messages import decode_ids, encode_ids
from protocol.secagg.states import STOP, Agreed, Masked, Policy
from protocol.transparency.leaf_codec import decode_leaf, sha256, verify_author
from protocol.transparency.leaves import Alive
from protocol.transparency.lists import of_clients
from protocol.transparency.offline import OfflineProof, parse_offline_proof
from protocol.transparency.policy import parse_policy

LENGTH = struct.Struct(">I")  # of a proof, before it


def agree_by_log(state: Masked, message: bytes, *, policy: Policy) -> Agreed:
    """Check that the alive set of this very round lies at its index under a quorum of witnesses.

    ``message`` is a C2SP tlog-proof whose extra data is the leaf; in a large cohort its length comes
    before it and the alive set behind it: :func:`encode_by_log`. Raises SecrecyError.
    """
    text, listed = _split(message, complete=is_complete(len(state.clients)))
    try:
        proof = parse_offline_proof(text.decode())
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
    if listed is None:
        if isinstance(leaf.clients, str):
            raise SecrecyError("alive.unlisted", "the leaf has a digest of the set alone", STOP)
        listed = bytes.fromhex("".join(leaf.clients))
    alive = decode_ids(listed, "alive")
    if of_clients([one.hex() for one in alive], sha256) != leaf.clients:
        raise SecrecyError("alive.other-set", "the set is not the one in the log", STOP)
    check_alive(state, alive, policy)
    return Agreed(before=state, alive=alive)


def encode_by_log(proof: bytes, alive: Sequence[bytes], *, complete: bool) -> bytes:
    """What members get of the sum of ``alive``, once it lies in the log."""
    return proof if complete else LENGTH.pack(len(proof)) + proof + encode_ids(alive)


def _split(message: bytes, *, complete: bool) -> tuple[bytes, bytes | None]:
    """(the proof, the alive set of a large cohort)."""
    if complete:
        return message, None
    size = LENGTH.unpack_from(message)[0] if len(message) >= LENGTH.size else 0
    end = LENGTH.size + size
    if not size or len(message) < end:
        raise SecrecyError("alive.malformed", f"{len(message)} bytes", STOP)
    return message[LENGTH.size : end], message[end:]


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
