"""The shares that others gave a client, opened before it trains. (P-6.7)

In a small cohort they come from everybody, whose adverts it has. In a large one they come from those who drew
this client as a holder, with their adverts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocol.errors import SecrecyError
from protocol.secagg import shamir
from protocol.secagg.agreement import X25519_BYTES, End
from protocol.secagg.cohort_checks import check_advert
from protocol.secagg.contexts import round_id
from protocol.secagg.graph import carries_seed, is_complete
from protocol.secagg.messages import decode_round, split_boxes, split_senders
from protocol.secagg.states import STOP, Opened, Policy, Shared

Sender = tuple[bytes, bytes]  # what opens its boxes, its mask key


def open_shares(state: Shared, message: bytes, terms: dict[str, Any], *, policy: Policy) -> Opened:
    """Check U2 and open the shares for this client; training starts only after this."""
    members, rest = decode_round(message)
    own, among = state.before.client, set(members)
    if not among <= set(state.clients):
        raise SecrecyError("round.unknown-client", "a member did not advertise", STOP)
    if own not in among:
        raise SecrecyError("round.own-missing", "this client is not a member", STOP)
    holders = [other for other in state.neighbours if other in among]
    if len(holders) < state.threshold:
        raise SecrecyError(
            "round.too-few-neighbours", f"{len(holders)}, needed {state.threshold}", STOP
        )
    senders, boxes = (
        (_known(state, holders), rest)
        if is_complete(len(state.clients))
        else _advertised(state, rest, policy, among)
    )
    by = _boxes(state, list(senders), boxes)
    end = state.before.end(state.xid)
    held = {sender: _opened(end, sender, senders[sender][0], box) for sender, box in by.items()}
    mask_keys = {other: state.mask_keys[other] for other in holders}
    pairs = {
        other: _pair(end, other, key, None if _is_own(own, other, state, by) else by[other])
        for other, key in ({one: keys[1] for one, keys in senders.items()} | mask_keys).items()
    }
    rid = round_id(state.xid, b"".join(members), terms)
    return Opened(before=state, rid=rid, members=members, held=held, pairs=pairs)


def _known(state: Shared, holders: list[bytes]) -> dict[bytes, Sender]:
    """(opener, mask key) of each, from the adverts that came with the cohort."""
    return {one: (state.channel_keys[one], state.mask_keys[one]) for one in holders}


def _advertised(
    state: Shared, rest: bytes, policy: Policy, members: set[bytes]
) -> tuple[dict[bytes, Sender], bytes]:
    """The same of those who drew this client, from their adverts; and the boxes."""
    adverts, boxes = split_senders(rest, state.before.keys)
    end = state.before.end(state.xid)
    senders = {}
    for advert in adverts:
        if advert.client not in members or advert.client == state.before.client:
            raise SecrecyError(
                "round.unknown-client", "somebody who sent shares is no member", STOP
            )
        check_advert(advert, state.before, policy)
        opener = end.opener(advert.client, advert.channel_key)
        senders[advert.client] = opener, advert.mask_key[:X25519_BYTES]
    return senders, boxes


def _boxes(state: Shared, senders: list[bytes], boxes: bytes) -> dict[bytes, bytes]:
    """By sender."""
    own, complete = state.before.client, is_complete(len(state.clients))
    sizes = [
        state.before.keys.box_bytes(seed=carries_seed(sender, own, complete=complete))
        for sender in senders
    ]
    if (sealed := split_boxes(boxes, sizes)) is None:
        raise SecrecyError(
            "round.shares", f"{len(boxes)} bytes of shares of {len(senders)} neighbours", STOP
        )
    return dict(zip(senders, sealed, strict=True))


def _is_own(own: bytes, other: bytes, state: Shared, by: Mapping[bytes, bytes]) -> bool:
    """Whether the pair's secret comes from this client's seed: :meth:`protocol.secagg.graph.Graph.source`."""
    if own < other:
        return other in state.neighbours
    return other not in by


def _pair(end: End, other: bytes, mask_key: bytes, sent: bytes | None) -> bytes:
    if (secret := end.pair_secret(other, mask_key, sent, own=sent is None)) is None:
        raise SecrecyError(
            "pair.unreadable",
            f"the pair secret of {other.hex()} does not open in this context",
            "that client or the coordinator is faulty; nothing was revealed",
        )
    return secret


def _opened(end: End, sender: bytes, opener: bytes, box: bytes) -> tuple[int, int]:
    plain = end.open_from(sender, opener, box)
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
