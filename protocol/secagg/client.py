"""A client's side of secure aggregation: one function per phase, states as types. (P-6.7)

``advertise -> share -> open_shares, mask -> agree_on_alive -> unmask``. Every function takes the
state before and a message, checks what the coordinator must not be trusted with, and returns the
state after with a reply. A refusal is a SecrecyError with its own code; it leaves the state as it
was and reveals nothing. :mod:`protocol.secagg.session` makes each phase happen once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import SecrecyError
from protocol.merkle import merkle_root
from protocol.secagg import shamir
from protocol.secagg.agreement import X25519_BYTES, Keys, pair_key
from protocol.secagg.cohort_checks import check_advert, check_cohort
from protocol.secagg.contexts import attempt_context, share_context
from protocol.secagg.graph import (
    alive_quorum,
    carries_seed,
    chosen_holders,
    is_complete,
)
from protocol.secagg.messages import (
    MASK_KEY,
    NO_PROOF,
    SELF_MASK,
    Advert,
    decode_cohort,
    decode_ids,
    decode_signatures,
    encode_masked_tail,
)
from protocol.secagg.openings import alive_digest
from protocol.secagg.packing import pack
from protocol.secagg.primitives import (
    RandomBytes,
    Suite,
    Word,
    add_mask,
    client_id,
    kdf,
    sign,
    signature_is_valid,
    tagged_hash,
)
from protocol.secagg.received import open_shares
from protocol.secagg.states import (
    STOP,
    Advertised,
    Agreed,
    Masked,
    Opened,
    Policy,
    Shared,
    State,
)

__all__ = [
    "STOP",
    "Advertised",
    "Agreed",
    "Masked",
    "Opened",
    "Policy",
    "Shared",
    "State",
    "advertise",
    "agree_on_alive",
    "commitment",
    "mask",
    "open_shares",
    "pair_sign",
    "share",
    "unmask",
    "vector_root",
]
CHUNK = 64 * 1024  # bytes per leaf of a vector's root


def advertise(
    key: Ed25519PrivateKey,
    *,
    sid: bytes,
    seq: int,
    random: RandomBytes,
    keys: Keys = Keys.X25519,
) -> tuple[Advertised, bytes]:
    """Draw this attempt's secrets; the reply is the signed advert."""
    own = client_id(key.public_key().public_bytes_raw())
    context = attempt_context(sid, seq)
    self_seed, mask_seed = shamir.random_element(random), shamir.random_element(random)
    channel = random(keys.secret_bytes)
    advert = Advert(
        sid=sid,
        seq=seq,
        client=own,
        channel_key=keys.public_of(channel),
        mask_key=keys.public_of(keys.mask_secret(mask_seed, context)),
        commitment=commitment(self_seed, context, own),
    )
    signed = advert.body + sign(key, "advert", advert.body)
    state = Advertised(
        keys=keys,
        sid=sid,
        seq=seq,
        client=own,
        self_seed=self_seed,
        mask_seed=mask_seed,
        channel_secret=channel,
        advert=signed,
    )
    return state, signed


def commitment(self_seed: int, context: bytes, client: bytes) -> bytes:
    """What an advert commits to, so that nobody can shift the sum with a wrong self mask."""
    return tagged_hash("bcommit", context + client + shamir.to_bytes(self_seed))


def share(
    state: Advertised,
    message: bytes,
    *,
    key: Ed25519PrivateKey,
    policy: Policy,
    random: RandomBytes,
) -> tuple[Shared, bytes]:
    """Check the cohort and share both seeds with the holders; reply: sealed shares, signed.

    In a large cohort this client draws its holders here, once the cohort is fixed, and says which. (P-6.3)
    """
    cohort = decode_cohort(message, state.keys)
    check_cohort(state, cohort, policy)
    own, complete = state.client, is_complete(len(cohort.ids))
    xid = share_context(attempt_context(state.sid, state.seq), cohort)
    # One choice for one cohort: a coordinator that is refused and asks again draws nothing anew.
    choice = b"" if complete else kdf(state.channel_secret, "choice", xid)
    holders = (
        tuple(one for one in cohort.ids if one != own)
        if complete
        else chosen_holders(cohort.ids, own, xid, choice)
    )
    adverts = {one: cohort.adverts[bisect_left(cohort.ids, one)] for one in holders}
    for advert in adverts.values():
        check_advert(advert, state, policy)
    places = range(1, len(holders) + 1)
    shares = [
        shamir.split(secret, places, cohort.threshold, random)
        for secret in (state.self_seed, state.mask_seed)
    ]
    end = state.end(xid)
    sealed, channels = [], {}
    for other, *parts in zip(holders, *shares, strict=True):
        to, plain = adverts[other], b"".join(map(shamir.to_bytes, parts))
        seed = carries_seed(own, other, complete=complete)
        box, channels[other] = end.seal_to(
            other, to.channel_key, to.mask_key, plain, random, seed=seed
        )
        sealed.append(box)
    signature = sign(key, "shares", xid + own + merkle_root(sealed) + choice)
    after = Shared(
        before=state,
        xid=xid,
        clients=cohort.ids,
        neighbours=holders,
        threshold=cohort.threshold,
        alive_index=cohort.alive_index,
        channel_keys=channels,
        mask_keys={one: adverts[one].mask_key[:X25519_BYTES] for one in holders},
    )
    return after, choice + b"".join(sealed) + signature


def mask(
    state: Opened, words: Word, *, bits: int, suite: Suite, key: Ed25519PrivateKey
) -> tuple[Masked, bytes]:
    """Mask ``words`` (n,) in place; reply: packed vector, its root, a signature."""
    shared, own = state.before, state.before.before.client
    self_key = kdf(shamir.to_bytes(shared.before.self_seed), "self", state.rid)
    add_mask(words, self_key, sign=1, suite=suite)
    for other, secret in state.pairs.items():
        pair = pair_key(secret, state.rid, own, other)
        add_mask(words, pair, sign=pair_sign(own, other), suite=suite)
    if bits not in (16, 32):
        words &= words.dtype.type(2**bits - 1)
    packed = pack(words, bits)
    root = vector_root(packed)
    after = Masked(
        client=own,
        clients=shared.clients,
        members=state.members,
        threshold=shared.threshold,
        alive_index=shared.alive_index,
        rid=state.rid,
        held=state.held,
        holders=shared.neighbours,
    )
    statement = vector_statement(state.rid, own, root, NO_PROOF)
    return after, packed + encode_masked_tail(root, NO_PROOF, sign(key, "vector", statement))


def vector_statement(rid: bytes, client: bytes, root: bytes, proof: bytes) -> bytes:
    """What the signature beside a masked vector covers."""
    return rid + client + root + tagged_hash("proof", proof)


def pair_sign(one: bytes, other: bytes) -> int:
    """The lower id adds, the higher subtracts."""
    return 1 if one < other else -1


def vector_root(packed: bytes | memoryview) -> bytes:
    """RFC 6962 root over pieces of 64 KiB."""
    view = memoryview(packed)
    return merkle_root([view[at : at + CHUNK] for at in range(0, len(view), CHUNK)])


def agree_on_alive(
    state: Masked, message: bytes, *, key: Ed25519PrivateKey, policy: Policy
) -> tuple[Agreed, bytes]:
    """Check the alive set and sign it; one set per attempt."""
    alive = decode_ids(message, "alive")
    check_alive(state, alive, policy)
    signature = sign(key, "alive", state.rid + alive_digest(alive))
    return Agreed(before=state, alive=alive), signature


def check_alive(state: Masked, alive: tuple[bytes, ...], policy: Policy) -> None:
    """A set whose sum this client may help to open. Raises SecrecyError."""
    if not set(alive) <= set(state.members):
        raise SecrecyError("alive.unknown-client", "somebody alive is not a member", STOP)
    if state.client not in alive:
        raise SecrecyError("alive.own-missing", "this client is alive and not in the set", STOP)
    if len(alive) < policy.minimum:
        raise SecrecyError(
            "alive.too-small", f"{len(alive)} clients, this one asks for {policy.minimum}", STOP
        )
    near = set(state.holders or state.held) & set(alive)
    if len(near) < state.threshold:
        raise SecrecyError(
            "alive.too-few-neighbours", f"{len(near)}, needed {state.threshold}", STOP
        )


def unmask(state: Agreed, message: bytes, *, policy: Policy) -> bytes:
    """The shares, against a quorum of signatures on the very alive set that this client signed."""
    _check_quorum(state, decode_signatures(message), policy.roster)
    return reveal(state)


def reveal(state: Agreed) -> bytes:
    """One share per member that gave shares: of its self mask if it is alive, of its mask key if not.

    The caller deletes the state before it sends the reply.
    """
    reply = b""
    for other in sorted(state.before.held):
        self_share, mask_share = state.before.held[other]
        kind, value = (SELF_MASK, self_share) if other in state.alive else (MASK_KEY, mask_share)
        reply += bytes([kind]) + shamir.to_bytes(value)
    return reply


def _check_quorum(
    state: Agreed, signatures: Mapping[bytes, bytes], roster: Mapping[bytes, bytes]
) -> None:
    """All of them: of a sample, which a refused coordinator asks for again, false ones would slip past."""
    clients = set(state.before.clients)
    statement = state.before.rid + alive_digest(state.alive)
    for signer, signature in signatures.items():
        if signer not in clients or signer not in roster:
            raise SecrecyError("alive.signature", f"{signer.hex()} is not in the cohort", STOP)
        if not signature_is_valid(roster[signer], "alive", statement, signature):
            raise SecrecyError(
                "alive.signature", f"{signer.hex()} did not sign this alive set", STOP
            )
    count = len(set(signatures) | {state.before.client})
    if count < (needed := alive_quorum(len(clients))):
        raise SecrecyError("alive.quorum", f"{count} signers, needed {needed}", STOP)
