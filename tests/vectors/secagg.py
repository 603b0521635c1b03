"""One attempt of secure aggregation, every message of it, from fixed keys and fixed randomness."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.secagg import client
from protocol.secagg.agreement import Keys
from protocol.secagg.coordinator import Attempt, Parameters
from protocol.secagg.graph import chosen_holders
from protocol.secagg.primitives import Suite, client_id
from tests.vectors.negatives import refusals

SID, SEQ, BITS, COUNT, TERMS = bytes(range(32)), 7, 16, 6, {"round": 3, "adapter": "a" * 64}
LOST = 4  # of five clients, after the shares


def stream(label: str) -> Callable[[int], bytes]:
    """Bytes that depend on the label alone: SHA-256 of label and counter."""
    counter = 0

    def read(size: int) -> bytes:
        nonlocal counter
        data = b""
        while len(data) < size:
            data += hashlib.sha256(f"{label}/{counter}".encode()).digest()
            counter += 1
        return data[:size]

    return read


def holders() -> dict[str, Any]:
    """P-6.3: the holders that two clients of 130 draw."""
    ids = sorted(client_id(f"client {number}".encode()) for number in range(130))
    xid = stream("xid")(32)
    cases = []
    for own in (ids[0], ids[77]):
        choice = stream(own.hex())(32)
        chosen = chosen_holders(ids, own, xid, choice)
        cases.append(
            {
                "own": own.hex(),
                "choice": choice.hex(),
                "holders": [ids.index(holder) for holder in chosen],
            }
        )
    return {"ids": [one.hex() for one in ids], "xid": xid.hex(), "cases": cases}


def attempt(form: Keys = Keys.X25519) -> dict[str, Any]:
    """P-6: five clients, one of them lost after the shares.

    The hybrid form is the same attempt, but not the same bytes twice: an encapsulation draws its own
    randomness. It is not written down; its test reads a fresh one.
    """
    made = [Ed25519PrivateKey.from_private_bytes(stream(f"key {n}")(32)) for n in range(5)]
    keys = dict(sorted((client_id(k.public_key().public_bytes_raw()), k) for k in made))
    ids = list(keys)
    roster = {one: key.public_key().public_bytes_raw() for one, key in keys.items()}
    policy = client.Policy(roster=roster, minimum=3)
    random = {one: stream(one.hex()) for one in ids}
    server = Attempt(Parameters(sid=SID, seq=SEQ, roster=roster, minimum=3, bits=BITS, keys=form))
    log: list[dict[str, str]] = []

    def up(phase: str, one: bytes, message: bytes) -> bytes:
        log.append({"from": one.hex(), "phase": phase, "message": message.hex()})
        return message

    def down(phase: str, one: bytes | None, message: bytes) -> bytes:
        log.append({"to": one.hex() if one else "all", "phase": phase, "message": message.hex()})
        return message

    adverts = {
        o: client.advertise(keys[o], sid=SID, seq=SEQ, random=random[o], keys=form) for o in ids
    }
    for one, (_, message) in adverts.items():
        server.receive_advert(one, up("advertise", one, message))
    cohort = down("share", None, server.close_adverts(ids))
    shared = {
        o: client.share(s, cohort, key=keys[o], policy=policy, random=random[o])
        for o, (s, _) in adverts.items()
    }
    for one, (_, message) in shared.items():
        server.receive_shares(one, up("share", one, message))
    server.fix_members()
    boxes = server.close_shares(TERMS, count=COUNT)
    vectors = {o: (1000 * n + np.arange(COUNT)).astype(np.uint16) for n, o in enumerate(ids)}
    present = [one for one in ids if one != ids[LOST]]
    masked = {}
    for one in present:
        message = down("mask", one, boxes[one])
        opened = client.open_shares(shared[one][0], message, TERMS, policy=policy)
        masked[one], reply = client.mask(
            opened, vectors[one].copy(), bits=BITS, suite=Suite.AES_256_CTR, key=keys[one]
        )
        server.receive_masked(one, up("mask", one, reply))
    alive = down("alive", None, server.close_masked())
    agreed = {
        o: client.agree_on_alive(masked[o], alive, key=keys[o], policy=policy) for o in present
    }
    for one, (_, message) in agreed.items():
        server.receive_alive(one, up("alive", one, message))
    signatures = down("unmask", None, server.close_alive())
    for one, (state, _) in agreed.items():
        reply = client.unmask(state, signatures, policy=policy)
        server.receive_unmask(one, up("unmask", one, reply))
    total = server.unmask()
    one, other = present[0], present[1]
    negatives = (
        []
        if form is Keys.HYBRID
        else refusals(
            key=keys[one],
            other_key=keys[other],
            policy=policy,
            random=stream("negatives"),
            terms=TERMS,
            advertised=adverts[one][0],
            cohort=cohort,
            shared=shared[one][0],
            box=boxes[one],
            masked=masked[one],
            alive=alive,
            agreed=agreed[one][0],
            signatures=signatures,
        )
    )
    channels = {one.hex(): adverts[one][0].channel_secret.hex() for one in ids}
    return {
        "sid": SID.hex(),
        "seq": SEQ,
        "bits": BITS,
        "terms": TERMS,
        "clients": [
            {
                "id": one.hex(),
                "public_key": roster[one].hex(),
                "self_seed": f"{adverts[one][0].self_seed:064x}",
                "mask_seed": f"{adverts[one][0].mask_seed:064x}",
                "vector": vectors[one].astype("<u2").tobytes().hex(),
            }
            for one in ids
        ],
        "xid": shared[ids[0]][0].xid.hex(),
        "rid": masked[ids[0]].rid.hex(),
        "messages": log,
        "sum": total.astype("<u2").tobytes().hex(),
    } | (
        {"channels": channels}
        if form is Keys.HYBRID
        else {"refused_by": one.hex(), "refused": negatives}
    )
