"""A client's side of secure aggregation: one function per phase, states as types. (P-6.7)

``advertise -> share -> open_shares, mask -> agree_on_alive -> unmask``. Every function takes the
state before and a message, checks what the coordinator must not be trusted with, and returns the
state after with a reply. A refusal is a SecrecyError with its own code; it leaves the state as it
was and reveals nothing. :mod:`protocol.secagg.session` makes each phase happen once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict

from protocol.errors import SecrecyError
from protocol.merkle import merkle_root
from protocol.secagg import shamir
from protocol.secagg.contexts import attempt_context, round_id, share_context
from protocol.secagg.graph import (
    COMPLETE_UP_TO,
    NO_SEED,
    alive_quorum,
    degree,
    graph_seed,
    neighbours,
    threshold,
)
from protocol.secagg.messages import (
    MASK_KEY,
    NO_INDEX,
    NO_PROOF,
    SELF_MASK,
    Advert,
    Cohort,
    decode_cohort,
    decode_ids,
    decode_round,
    decode_signatures,
    encode_masked_tail,
)
from protocol.secagg.packing import pack
from protocol.secagg.primitives import (
    RandomBytes,
    Suite,
    Word,
    add_mask,
    agree,
    client_id,
    kdf,
    public_of,
    seal,
    sign,
    signature_is_valid,
    tagged_hash,
    unseal,
)

CHUNK = 64 * 1024  # bytes per leaf of a vector's root
STOP = "the coordinator is faulty or dishonest: nothing was revealed; ask its operator"


class Policy(BaseModel):
    """What this client insists on, whatever the coordinator says.

    ``roster`` maps ids to raw Ed25519 public keys; ``minimum`` is the smallest sum that may be
    revealed; ``degree`` is k above 128 clients, and ``beacon`` the public randomness their graph comes
    from: without one, larger cohorts are refused, because whoever picks the graph picks neighbours.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="hex", val_json_bytes="hex")

    roster: dict[bytes, bytes]
    minimum: int
    degree: int = 64
    beacon: bytes | None = None


class State(BaseModel):
    """Secrets of one attempt. Never logged; deleted when the attempt ends."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="hex", val_json_bytes="hex"
    )

    def __repr__(self) -> str:
        """The type alone: a state in a log or an exception shows nothing."""
        return f"<{type(self).__name__}>"

    __str__ = __repr__


class Advertised(State):
    """Keys are drawn and published."""

    sid: bytes
    seq: int
    client: bytes
    self_seed: int
    mask_seed: int
    channel_secret: bytes
    advert: bytes


class Shared(State):
    """The seeds are shared with the neighbours."""

    before: Advertised
    xid: bytes
    clients: tuple[bytes, ...]  # U1
    neighbours: tuple[bytes, ...]
    threshold: int
    channel_keys: dict[bytes, bytes]
    mask_keys: dict[bytes, bytes]


class Opened(State):
    """The neighbours' shares are open; ``held`` are those of (self seed, mask seed)."""

    before: Shared
    rid: bytes
    members: tuple[bytes, ...]  # U2
    held: dict[bytes, tuple[int, int]]


class Masked(State):
    """The masked vector is out. Of this client's own secrets nothing is left: nobody needs them."""

    client: bytes
    clients: tuple[bytes, ...]  # U1
    members: tuple[bytes, ...]  # U2
    threshold: int
    rid: bytes
    held: dict[bytes, tuple[int, int]]


class Agreed(State):
    """This client has signed one alive set."""

    before: Masked
    alive: tuple[bytes, ...]  # U3


def advertise(
    key: Ed25519PrivateKey, *, sid: bytes, seq: int, random: RandomBytes
) -> tuple[Advertised, bytes]:
    """Draw this attempt's secrets; the reply is the signed advert."""
    own = client_id(key.public_key().public_bytes_raw())
    context = attempt_context(sid, seq)
    self_seed, mask_seed = shamir.random_element(random), shamir.random_element(random)
    channel = random(32)
    advert = Advert(
        sid=sid,
        seq=seq,
        client=own,
        channel_key=public_of(channel),
        mask_key=public_of(mask_secret(mask_seed, context)),
        commitment=commitment(self_seed, context, own),
    )
    signed = advert.body + sign(key, "advert", advert.body)
    state = Advertised(
        sid=sid,
        seq=seq,
        client=own,
        self_seed=self_seed,
        mask_seed=mask_seed,
        channel_secret=channel,
        advert=signed,
    )
    return state, signed


def mask_secret(mask_seed: int, context: bytes) -> bytes:
    """The X25519 secret that pair masks come from."""
    return kdf(shamir.to_bytes(mask_seed), "mask-sk", context)


def commitment(self_seed: int, context: bytes, client: bytes) -> bytes:
    """What an advert commits to, so that nobody can shift the sum with a wrong self mask."""
    return tagged_hash("bcommit", context + client + shamir.to_bytes(self_seed))


def pair_label(one: bytes, other: bytes) -> bytes:
    """The two ids, lower first."""
    return min(one, other) + max(one, other)


def share(
    state: Advertised,
    message: bytes,
    *,
    key: Ed25519PrivateKey,
    policy: Policy,
    random: RandomBytes,
) -> tuple[Shared, bytes]:
    """Check the cohort and share both seeds with the neighbours; reply: sealed shares, signed."""
    cohort = decode_cohort(message)
    _check_cohort(state, cohort, policy)
    own = state.client
    adverts = {advert.client: advert for advert in cohort.adverts}
    near = neighbours(tuple(adverts), cohort.degree, cohort.graph_seed)
    xid = share_context(attempt_context(state.sid, state.seq), cohort)
    channels = {
        other: kdf(
            agree(state.channel_secret, adverts[other].channel_key),
            "chan",
            xid + pair_label(own, other),
        )
        for other in near[own]
    }
    places = range(1, len(near[own]) + 1)
    shares = [
        shamir.split(seed, places, cohort.threshold, random)
        for seed in (state.self_seed, state.mask_seed)
    ]
    sealed = [
        seal(
            channels[other],
            shamir.to_bytes(shares[0][at]) + shamir.to_bytes(shares[1][at]),
            xid + own + other,
            random,
        )
        for at, other in enumerate(near[own])
    ]
    signature = sign(key, "shares", xid + own + merkle_root(sealed))
    after = Shared(
        before=state,
        xid=xid,
        clients=tuple(adverts),
        neighbours=near[own],
        threshold=cohort.threshold,
        channel_keys=channels,
        mask_keys={other: adverts[other].mask_key for other in near[own]},
    )
    return after, b"".join(sealed) + signature


def _check_cohort(state: Advertised, cohort: Cohort, policy: Policy) -> None:
    ids = [advert.client for advert in cohort.adverts]
    if ids != sorted(set(ids)):
        raise SecrecyError("cohort.duplicate", "a client is listed twice or out of order", STOP)
    if len(ids) < policy.minimum:
        raise SecrecyError(
            "cohort.too-small", f"{len(ids)} clients, this one asks for {policy.minimum}", STOP
        )
    own = {advert.client: advert for advert in cohort.adverts}.get(state.client)
    if own is None or own.encode() != state.advert:
        raise SecrecyError("cohort.own-advert", "this client's advert is altered or missing", STOP)
    for advert in cohort.adverts:
        _check_advert(advert, state, policy)
    k = degree(len(ids), policy.degree)
    if len(ids) > COMPLETE_UP_TO and policy.beacon is None:
        raise SecrecyError(
            "cohort.too-large", f"{len(ids)} clients and no public randomness for their graph", STOP
        )
    seed = NO_SEED if len(ids) <= COMPLETE_UP_TO else graph_seed(cohort.root, policy.beacon or b"")
    if cohort.degree != k or cohort.graph_seed != seed:
        raise SecrecyError("cohort.graph", f"the graph is not the plan's (k = {k})", STOP)
    if cohort.threshold != threshold(k):
        raise SecrecyError(
            "cohort.threshold", f"threshold {cohort.threshold}, the rule gives {threshold(k)}", STOP
        )
    if cohort.alive_index != NO_INDEX:
        raise SecrecyError("cohort.mode", "an alive set from a log is not supported", STOP)


def _check_advert(advert: Advert, state: Advertised, policy: Policy) -> None:
    name = advert.client.hex()
    public = policy.roster.get(advert.client)
    if public is None:
        raise SecrecyError("cohort.unknown-client", f"{name} is not in the roster", STOP)
    if (advert.sid, advert.seq) != (state.sid, state.seq):
        raise SecrecyError("advert.other-attempt", f"{name}'s advert is of another attempt", STOP)
    if not signature_is_valid(public, "advert", advert.body, advert.signature):
        raise SecrecyError("advert.signature", f"{name}'s advert is not signed by it", STOP)


def open_shares(state: Shared, message: bytes, terms: dict[str, Any]) -> Opened:
    """Check U2 and open the neighbours' shares; training starts only after this."""
    members, sealed = decode_round(message)
    own = state.before.client
    if not set(members) <= set(state.clients):
        raise SecrecyError("round.unknown-client", "a member did not advertise", STOP)
    if own not in members:
        raise SecrecyError("round.own-missing", "this client is not a member", STOP)
    senders = [other for other in state.neighbours if other in set(members)]
    if len(senders) < state.threshold:
        raise SecrecyError(
            "round.too-few-neighbours", f"{len(senders)}, needed {state.threshold}", STOP
        )
    if len(sealed) != len(senders):
        raise SecrecyError(
            "round.shares", f"{len(sealed)} shares of {len(senders)} neighbours", STOP
        )
    held = {
        sender: _opened(state, sender, data) for sender, data in zip(senders, sealed, strict=True)
    }
    rid = round_id(state.xid, b"".join(members), terms)
    return Opened(before=state, rid=rid, members=members, held=held)


def _opened(state: Shared, sender: bytes, sealed: bytes) -> tuple[int, int]:
    associated = state.xid + sender + state.before.client
    plain = unseal(state.channel_keys[sender], sealed, associated)
    halves = (
        None if plain is None else (shamir.from_bytes(plain[:32]), shamir.from_bytes(plain[32:]))
    )
    if halves is None or halves[0] is None or halves[1] is None:
        raise SecrecyError(
            "share.unreadable",
            f"the shares of {sender.hex()} do not open in this context",
            "that client or the coordinator is faulty; nothing was revealed",
        )
    return halves[0], halves[1]


def mask(
    state: Opened, words: Word, *, bits: int, suite: Suite, key: Ed25519PrivateKey
) -> tuple[Masked, bytes]:
    """Mask ``words`` (n,) in place; reply: packed vector, its root, a signature."""
    shared, own = state.before, state.before.before.client
    self_key = kdf(shamir.to_bytes(shared.before.self_seed), "self", state.rid)
    add_mask(words, self_key, sign=1, suite=suite)
    context = attempt_context(shared.before.sid, shared.before.seq)
    secret = mask_secret(shared.before.mask_seed, context)
    for other in state.held:
        pair = pair_key(secret, shared.mask_keys[other], state.rid, own, other)
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
        rid=state.rid,
        held=state.held,
    )
    statement = vector_statement(state.rid, own, root, NO_PROOF)
    return after, packed + encode_masked_tail(root, NO_PROOF, sign(key, "vector", statement))


def vector_statement(rid: bytes, client: bytes, root: bytes, proof: bytes) -> bytes:
    """What the signature beside a masked vector covers."""
    return rid + client + root + tagged_hash("proof", proof)


def pair_key(secret: bytes, public: bytes, rid: bytes, one: bytes, other: bytes) -> bytes:
    """The mask key of a pair in a round: the same from either side."""
    return kdf(agree(secret, public), "pair", rid + pair_label(one, other))


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
    if not set(alive) <= set(state.members):
        raise SecrecyError("alive.unknown-client", "somebody alive is not a member", STOP)
    if state.client not in alive:
        raise SecrecyError("alive.own-missing", "this client is alive and not in the set", STOP)
    if len(alive) < policy.minimum:
        raise SecrecyError(
            "alive.too-small", f"{len(alive)} clients, this one asks for {policy.minimum}", STOP
        )
    near = set(state.held) & set(alive)
    if len(near) < state.threshold:
        raise SecrecyError(
            "alive.too-few-neighbours", f"{len(near)}, needed {state.threshold}", STOP
        )
    signature = sign(key, "alive", state.rid + alive_hash(alive))
    return Agreed(before=state, alive=alive), signature


def alive_hash(alive: tuple[bytes, ...]) -> bytes:
    """SHA-256 of the sorted ids."""
    return hashlib.sha256(b"".join(alive)).digest()


def unmask(state: Agreed, message: bytes, *, policy: Policy) -> bytes:
    """One share per neighbour in U2: of its self mask if it is alive, of its mask key if not.

    Only against a quorum of signatures on the very alive set that this client signed. The caller
    deletes the state before it sends the reply.
    """
    masked = state.before
    _check_quorum(state, decode_signatures(message), policy.roster)
    reply = b""
    for other in sorted(masked.held):
        self_share, mask_share = masked.held[other]
        kind, value = (SELF_MASK, self_share) if other in state.alive else (MASK_KEY, mask_share)
        reply += bytes([kind]) + shamir.to_bytes(value)
    return reply


def _check_quorum(
    state: Agreed, signatures: Mapping[bytes, bytes], roster: Mapping[bytes, bytes]
) -> None:
    clients = set(state.before.clients)
    statement = state.before.rid + alive_hash(state.alive)
    for signer, signature in signatures.items():
        known = signer in clients and signer in roster
        if not known or not signature_is_valid(roster[signer], "alive", statement, signature):
            raise SecrecyError(
                "alive.signature", f"{signer.hex()} did not sign this alive set", STOP
            )
    signers = set(signatures) | {state.before.client}
    if len(signers) < (needed := alive_quorum(len(clients))):
        raise SecrecyError("alive.quorum", f"{len(signers)} signers, needed {needed}", STOP)
