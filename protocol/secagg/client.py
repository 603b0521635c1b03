"""A client's side of secure aggregation: one function per phase, states as types. (P-6.7)

``advertise -> share -> open_shares, mask -> agree_on_alive -> unmask``. Every function takes the
state before and a message, checks what the coordinator must not be trusted with, and returns the
state after with a reply. A refusal is a SecrecyError with its own code; it leaves the state as it
was and reveals nothing. :mod:`protocol.secagg.session` makes each phase happen once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import SecrecyError
from protocol.merkle import merkle_root
from protocol.secagg import shamir
from protocol.secagg.agreement import X25519_BYTES, End, Keys, pair_key
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
    split_boxes,
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


def _end(state: Advertised, xid: bytes) -> End:
    return state.keys.end(
        client=state.client,
        attempt=attempt_context(state.sid, state.seq),
        xid=xid,
        mask_seed=state.mask_seed,
        channel_secret=state.channel_secret,
    )


def share(
    state: Advertised,
    message: bytes,
    *,
    key: Ed25519PrivateKey,
    policy: Policy,
    random: RandomBytes,
) -> tuple[Shared, bytes]:
    """Check the cohort and share both seeds with the neighbours; reply: sealed shares, signed."""
    cohort = decode_cohort(message, state.keys)
    _check_cohort(state, cohort, policy)
    own = state.client
    adverts = {advert.client: advert for advert in cohort.adverts}
    near = neighbours(tuple(adverts), cohort.degree, cohort.graph_seed)
    xid = share_context(attempt_context(state.sid, state.seq), cohort)
    places = range(1, len(near[own]) + 1)
    shares = [
        shamir.split(seed, places, cohort.threshold, random)
        for seed in (state.self_seed, state.mask_seed)
    ]
    end = _end(state, xid)
    sealed, channels = [], {}
    for other, *parts in zip(near[own], *shares, strict=True):
        to, plain = adverts[other], b"".join(map(shamir.to_bytes, parts))
        box, channels[other] = end.seal_to(other, to.channel_key, to.mask_key, plain, random)
        sealed.append(box)
    signature = sign(key, "shares", xid + own + merkle_root(sealed))
    after = Shared(
        before=state,
        xid=xid,
        clients=tuple(adverts),
        neighbours=near[own],
        threshold=cohort.threshold,
        alive_index=cohort.alive_index,
        channel_keys=channels,
        mask_keys={other: adverts[other].mask_key[:X25519_BYTES] for other in near[own]},
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
    if (cohort.alive_index == NO_INDEX) == bool(policy.log_policy):
        raise SecrecyError(
            "cohort.mode",
            "an alive set from a witnessed log where the plan asks for signatures, or the reverse",
            STOP,
        )


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
    members, boxes = decode_round(message)
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
    sizes = [state.before.keys.box_bytes(sender, own) for sender in senders]
    if (sealed := split_boxes(boxes, sizes)) is None:
        raise SecrecyError(
            "round.shares", f"{len(boxes)} bytes of shares of {len(senders)} neighbours", STOP
        )
    end, by = _end(state.before, state.xid), dict(zip(senders, sealed, strict=True))
    held = {sender: _opened(state, end, sender, box) for sender, box in by.items()}
    pairs = {sender: _pair(state, end, sender, box) for sender, box in by.items()}
    rid = round_id(state.xid, b"".join(members), terms)
    return Opened(before=state, rid=rid, members=members, held=held, pairs=pairs)


def _pair(state: Shared, end: End, other: bytes, box: bytes) -> bytes:
    sent = box if other < end.client else None  # a pair's secret comes from its lower id
    if (secret := end.pair_secret(other, state.mask_keys[other], sent)) is None:
        raise SecrecyError(
            "pair.unreadable",
            f"the pair secret of {other.hex()} does not open in this context",
            "that client or the coordinator is faulty; nothing was revealed",
        )
    return secret


def _opened(state: Shared, end: End, sender: bytes, box: bytes) -> tuple[int, int]:
    plain = end.open_from(sender, state.channel_keys[sender], box)
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
    near = set(state.held) & set(alive)
    if len(near) < state.threshold:
        raise SecrecyError(
            "alive.too-few-neighbours", f"{len(near)}, needed {state.threshold}", STOP
        )


def unmask(state: Agreed, message: bytes, *, policy: Policy) -> bytes:
    """The shares, against a quorum of signatures on the very alive set that this client signed."""
    _check_quorum(state, decode_signatures(message), policy.roster)
    return reveal(state)


def reveal(state: Agreed) -> bytes:
    """One share per neighbour in U2: of its self mask if it is alive, of its mask key if not.

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
    clients = set(state.before.clients)
    statement = state.before.rid + alive_digest(state.alive)
    for signer, signature in signatures.items():
        known = signer in clients and signer in roster
        if not known or not signature_is_valid(roster[signer], "alive", statement, signature):
            raise SecrecyError(
                "alive.signature", f"{signer.hex()} did not sign this alive set", STOP
            )
    signers = set(signatures) | {state.before.client}
    if len(signers) < (needed := alive_quorum(len(clients))):
        raise SecrecyError("alive.quorum", f"{len(signers)} signers, needed {needed}", STOP)
