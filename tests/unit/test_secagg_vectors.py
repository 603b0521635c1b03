"""The test vectors of secure aggregation, computed again from the protocol's text."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from protocol.errors import UpdateError
from protocol.secagg.agreement import Keys
from tests.unit.published_vectors import fedge_hash, load
from tests.vectors.ring import refuse
from tests.vectors.secagg import attempt


def hkdf(secret: bytes, label: str, context: bytes, length: int = 32) -> bytes:
    """RFC 5869 with an empty salt, 32 or 64 bytes."""
    key = hmac.digest(bytes(32), secret, "sha256")
    info = b"fedge/" + label.encode() + b"/v1\x00" + context
    first = hmac.digest(key, info + b"\x01", "sha256")
    return (first + hmac.digest(key, first + info + b"\x02", "sha256"))[:length]


def keystream(key: bytes, count: int) -> Any:
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(cipher.update(bytes(2 * count)), "<u2")


def x25519(secret: bytes, public: bytes | None = None) -> bytes:
    key = X25519PrivateKey.from_private_bytes(secret)
    if public is None:
        return key.public_key().public_bytes_raw()
    return key.exchange(X25519PublicKey.from_public_bytes(public))


def turned_back(words: list[int], size: int, seed: bytes) -> tuple[list[int], int]:
    """P-6.9 number by number: (h times the inverse of the two turns, h)."""
    h = min(1 << (size - 1).bit_length(), 2**14)
    while 100 * h * (number := -(-size // h) // 2 * 2 + 1) > 103 * size + 6400:
        h //= 2
    assert len(words) == h * number
    stream = keystream(seed, -(-2 * len(words) // 16)).astype("<u2").tobytes()
    for turn in (1, 0):
        before = [0] * len(words)
        for i in range(len(words)):
            block, place = words[i % number * h :][:h], i // number
            value = sum(w if (place & k).bit_count() % 2 == 0 else -w for k, w in enumerate(block))
            bit = turn * len(words) + i
            before[i] = -value if stream[bit // 8] >> bit % 8 & 1 else value
        words = before
    return words[:size], h


def words_of(case: Any) -> list[int]:
    kind = "<u2" if case["bits"] == 16 else "<u4"
    return [int(word) for word in np.frombuffer(bytes.fromhex(case["words"]), kind)]


def test_sums_at_the_rings_precision() -> None:
    for case in load("ring.json")["exact"]:
        clip, n = float.fromhex(case["clip"]), case["summands"]
        q = (2 ** case["bits"] - 1) // case["clients"]
        e = (q + 1).bit_length() - 1
        digits = -(-40 // e)
        words = words_of(case)
        vector, rest = words[: -2 * digits], words[-2 * digits :]
        flat, h = turned_back(
            [2 * w - n * q for w in vector], case["size"], bytes.fromhex(case["rotation"])
        )
        scale = (5 * clip) / math.sqrt(len(vector)) / ((q * h) * n)
        assert (
            struct.pack(f"<{len(flat)}f", *(value * scale for value in flat)).hex() == case["mean"]
        )
        sums = [sum(w << e * k for k, w in enumerate(rest[at : at + digits])) for at in (0, digits)]
        assert sums == case["counters"]


def test_sums_under_noise() -> None:
    for case in load("ring.json")["noisy"]:
        half, n = 2 ** (case["bits"] - 1), case["summands"]
        words = [(word + half) % (2 * half) - half for word in words_of(case)]
        flat, h = turned_back(words, case["size"], bytes.fromhex(case["rotation"]))
        scale = float.fromhex(case["grid"]) / (h * n)
        assert (
            struct.pack(f"<{len(flat)}f", *(value * scale for value in flat)).hex() == case["mean"]
        )


@pytest.mark.parametrize("case", load("ring.json")["refused"], ids=lambda case: case["why"])
def test_refused_sums(case: dict[str, Any]) -> None:
    with pytest.raises(UpdateError, match=case["error"]):
        refuse(case)


def test_an_attempt_of_secure_aggregation_step_by_step() -> None:
    """P-6 read again from the document: contexts, adverts, every masked vector, and the sum."""
    case = load("secagg.json")
    sid, actx = (
        bytes.fromhex(case["sid"]),
        bytes.fromhex(case["sid"]) + case["seq"].to_bytes(8, "big"),
    )
    clients = {bytes.fromhex(c["id"]): c for c in case["clients"]}
    sent = {
        (m["phase"], bytes.fromhex(m["from"])): bytes.fromhex(m["message"])
        for m in case["messages"]
        if "from" in m
    }
    got = {m["phase"]: bytes.fromhex(m["message"]) for m in case["messages"] if "to" in m}
    secrets = {}
    for one, entry in clients.items():
        public = bytes.fromhex(entry["public_key"])
        assert hashlib.sha256(public).digest()[:16] == one
        body, signature = sent["advertise", one][:152], sent["advertise", one][152:]
        Ed25519PublicKey.from_public_bytes(public).verify(signature, b"fedge/advert/v1\x00" + body)
        secrets[one] = hkdf(bytes.fromhex(entry["mask_seed"]), "mask-sk", actx)
        commitment = hashlib.sha256(
            b"fedge/bcommit/v1\x00" + actx + one + bytes.fromhex(entry["self_seed"])
        ).digest()
        assert body[:56] == actx + one
        assert body[88:] == x25519(secrets[one]) + commitment
    root = hashlib.sha256(
        b"fedge/u1/v1\x00" + b"".join(sent["advertise", one][:152] for one in sorted(clients))
    ).digest()
    head = struct.pack(">HHQ32sH", 4, 3, 2**64 - 1, bytes(32), 5)
    assert got["share"] == head + b"".join(sent["advertise", one] for one in sorted(clients))
    xid = hashlib.sha256(
        b"fedge/share-ctx/v1\x00" + actx + root + bytes(32) + struct.pack(">HHQ", 4, 3, 2**64 - 1)
    ).digest()
    assert xid.hex() == case["xid"]
    members = hashlib.sha256(b"fedge/u2/v1\x00" + b"".join(sorted(clients))).digest()
    terms = json.dumps(case["terms"], sort_keys=True, separators=(",", ":")).encode()
    rid = hashlib.sha256(b"fedge/round/v1\x00" + xid + members + terms).digest()
    assert rid.hex() == case["rid"]
    alive = sorted(one for phase, one in sent if phase == "mask")
    assert got["alive"] == b"".join(alive)
    total = np.zeros(6, np.uint16)
    for one in alive:
        vector = np.frombuffer(bytes.fromhex(clients[one]["vector"]), "<u2")
        masked = vector + keystream(hkdf(bytes.fromhex(clients[one]["self_seed"]), "self", rid), 6)
        for other in sorted(clients):
            if other != one:
                agreed = x25519(secrets[one], x25519(secrets[other]))
                pair = keystream(hkdf(agreed, "pair", rid + min(one, other) + max(one, other)), 6)
                masked = masked + pair if one < other else masked - pair
        assert sent["mask", one][:12] == masked.astype("<u2").tobytes()
        total += vector
        kinds = [sent["unmask", one][at] for at in range(0, 4 * 33, 33)]
        assert kinds == [int(other not in alive) for other in sorted(clients) if other != one]
    assert total.astype("<u2").tobytes().hex() == case["sum"]
    assert len(sid) == 32


def test_the_holders_that_a_choice_draws() -> None:
    """P-6.3, by the document alone."""
    case = load("holders.json")
    ids = [bytes.fromhex(one) for one in case["ids"]]
    for entry in case["cases"]:
        own = bytes.fromhex(entry["own"])
        message = bytes.fromhex(case["xid"]) + own + bytes.fromhex(entry["choice"])
        stream = hashlib.shake_256(hashlib.sha256(b"fedge/holders/v1\x00" + message).digest())
        others = [one for one in ids if one != own]
        holders: list[bytes] = []
        for (word,) in struct.iter_unpack(">Q", stream.digest(8 * 1000)):
            if (one := others[word * len(others) // 2**64]) not in holders:
                holders.append(one)
        assert [ids.index(one) for one in sorted(holders[:80])] == entry["holders"]


def test_every_kind_of_lie_has_its_own_refusal() -> None:
    """What must be refused is in the vectors with its code; regenerating them refuses it again."""
    case = load("secagg.json")
    refused = {(entry["phase"], entry["what"]): entry["code"] for entry in case["refused"]}
    assert refused["share", "threshold 1"] == "cohort.threshold"
    assert refused["share", "two clients only"] == "cohort.too-small"
    assert refused["share", "a client twice"] == "cohort.duplicate"
    assert refused["share", "a key swapped"] == "advert.signature"
    assert refused["share", "an advert of another attempt"] == "advert.other-attempt"
    assert refused["share", "an unknown client"] == "cohort.unknown-client"
    assert refused["mask", "boxes exchanged"] == "share.unreadable"
    assert refused["alive", "itself not alive"] == "alive.own-missing"
    assert refused["unmask", "too few signatures"] == "alive.quorum"
    assert len({entry["message"] for entry in case["refused"]}) == len(case["refused"]) > 20


def hybrid_public(secret: bytes) -> bytes:
    kem = MLKEM768PrivateKey.from_seed_bytes(secret[32:]).public_key()
    return x25519(secret[:32]) + kem.public_bytes_raw()


def hybrid_open(
    secret: bytes, sender: bytes, label: str, way: bytes, extra: bytes, box: bytes
) -> bytes:
    """P-6.15: what ``sender`` (a public key) sealed to the key pair of ``secret``."""
    shared = MLKEM768PrivateKey.from_seed_bytes(secret[32:]).decapsulate(box[:1088])
    shared += x25519(secret[:32], sender[:32])
    key = hkdf(shared, label, way + sender[:32] + hybrid_public(secret) + box[:1088])
    return ChaCha20Poly1305(key).decrypt(box[1088:1100], box[1100:], way + extra)


def test_a_hybrid_attempt_step_by_step() -> None:
    """P-6.15 read again from the document: adverts, every box, every masked vector, the sum."""
    case = attempt(Keys.HYBRID)
    actx = bytes.fromhex(case["sid"]) + case["seq"].to_bytes(8, "big")
    xid, rid = bytes.fromhex(case["xid"]), bytes.fromhex(case["rid"])
    clients = {bytes.fromhex(c["id"]): c for c in case["clients"]}
    ids = sorted(clients)
    sent = {
        (m["phase"], bytes.fromhex(m["from"])): bytes.fromhex(m["message"])
        for m in case["messages"]
        if "from" in m
    }
    got = {m["phase"]: bytes.fromhex(m["message"]) for m in case["messages"] if "to" in m}
    seeds = {one: bytes.fromhex(clients[one]["mask_seed"]) for one in ids}
    channels = {one: bytes.fromhex(case["channels"][one.hex()]) for one in ids}
    masks = {one: hkdf(s, "x25519", actx) + hkdf(s, "mlkem", actx, 64) for one, s in seeds.items()}
    bodies = {one: sent["advertise", one][:-64] for one in ids}
    for one in ids:
        assert bodies[one][:56] == actx + one
        assert bodies[one][56:-32] == hybrid_public(channels[one]) + hybrid_public(masks[one])
        signature, public = sent["advertise", one][-64:], bytes.fromhex(clients[one]["public_key"])
        Ed25519PublicKey.from_public_bytes(public).verify(
            signature, b"fedge/advert/v1\x00" + bodies[one]
        )
    assert got["share"][46:] == b"".join(sent["advertise", one] for one in ids)
    root = hashlib.sha256(b"fedge/u1/v1\x00" + b"".join(bodies[one] for one in ids)).digest()
    head = struct.pack(">HHQ", 4, 3, 2**64 - 1)
    assert xid.hex() == fedge_hash("share-ctx", actx + root + bytes(32) + head)
    pairs = {}
    for one in ids:
        at = 0
        for other in (i for i in ids if i != one):
            way, box = xid + one + other, sent["share", one][at : at + 1180]
            plain = hybrid_open(channels[other], bodies[one][56:], "chan-hybrid", way, b"", box)
            assert len(plain) == 64
            at += 1180
            if one < other:
                box, commit = (
                    sent["share", one][at : at + 1148],
                    sent["share", one][at + 1148 :][:32],
                )
                pairs[one, other] = hkdf(seeds[one], "pair-seed", actx + other)
                opened = hybrid_open(masks[other], bodies[one][1272:], "pair-box", way, commit, box)
                assert opened == pairs[one, other]
                assert commit.hex() == fedge_hash("pair-commit", way + opened)
                at += 1180
        assert len(sent["share", one]) == at + 64
    total = np.zeros(6, np.uint16)
    for one in (i for phase, i in sent if phase == "mask"):
        vector = np.frombuffer(bytes.fromhex(clients[one]["vector"]), "<u2")
        masked = vector + keystream(hkdf(bytes.fromhex(clients[one]["self_seed"]), "self", rid), 6)
        for (low, high), seed in pairs.items():
            pair = keystream(hkdf(seed, "pair", rid + low + high), 6)
            masked = masked + pair if one == low else masked - pair if one == high else masked
        assert sent["mask", one][:12] == masked.astype("<u2").tobytes()
        total += vector
    assert total.astype("<u2").tobytes().hex() == case["sum"]
