"""The committed vectors: written again identically, and read by code that imports no fedge."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocol.encoding import canonical_json
from protocol.errors import UpdateError
from protocol.exchange.plain import decode
from tests.vectors.make import FILES, FOLDER, rendered


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_vectors_are_written_again_byte_for_byte(name: str) -> None:
    assert rendered(name) == (FOLDER / name).read_text(encoding="utf-8")
    assert {path.name for path in Path(FOLDER).glob("*.json")} == set(FILES)


def fedge_hash(tag: str, message: bytes) -> str:
    return hashlib.sha256(b"fedge/" + tag.encode() + b"/v1\x00" + message).hexdigest()


def unmarked(value: Any) -> Any:
    """Reals become the strings they are carried as."""
    if isinstance(value, dict) and set(value) == {"real"}:
        return value["real"]
    if isinstance(value, dict):
        return {key: unmarked(item) for key, item in value.items()}
    return [unmarked(item) for item in value] if isinstance(value, list) else value


def test_identities() -> None:
    vectors = load("identities.json")
    for case in vectors["canonical_json"]:
        text = json.dumps(
            unmarked(case["value"]), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        assert text.encode() == bytes.fromhex(case["bytes"])
    for case in vectors["hash"]:
        assert fedge_hash(case["tag"], bytes.fromhex(case["message"])) == case["digest"]
    for case in vectors["seed"]:
        parts = "\x1f".join(map(str, case["parts"])).encode()
        first = hashlib.sha256(b"fedge/seed/v1\x00" + parts).digest()[:8]
        assert int.from_bytes(first, "big") >> 1 == case["seed"]
    for case in vectors["adapter"]:
        assert fedge_hash("adapter", bytes.fromhex(case["vector"])) == case["digest"]


@pytest.mark.parametrize(
    "value", [math.nan, {"a": math.inf}, {"ä": 1}, {1: 2}, {"a": b"bytes"}, {1, 2}], ids=repr
)
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        canonical_json(value)


def test_codes() -> None:
    for case in load("codes.json")["dequantise"]:
        bits, rows, width = case["bits"], case["rows"], case["width"]
        blocks = -(-width // 32)
        raw = bytes.fromhex(case["qweight"])
        codes = [nibble for b in raw for nibble in (b & 15, b >> 4)] if bits == 4 else list(raw)
        scales = struct.unpack(f"<{rows * blocks}f", bytes.fromhex(case["scales"]))
        expected = np.frombuffer(bytes.fromhex(case["weight"]), "<f4").reshape(rows, width)
        for row in range(rows):
            for column in range(width):
                scale = np.float32(scales[row * blocks + column // 32])
                code = codes[row * blocks * 32 + column]
                assert np.float32(code - 2 ** (bits - 1)) * scale == expected[row, column]


def test_plain_messages_and_their_sum() -> None:
    vectors = load("plain.json")
    total, weight = [0] * vectors["size"], 0
    for member in vectors["members"]:
        metrics = list(member["metrics"].values())
        header = struct.pack("<8sII5d", b"fedgeP1\0", vectors["size"], member["weight"], *metrics)
        assert (header.hex() + member["update"]) == member["message"]
        update = struct.unpack(f"<{vectors['size']}f", bytes.fromhex(member["update"]))
        for place, value in enumerate(update):
            # round() is exact here: the product with a power of two is, and ties go to even.
            total[place] += round(value * 2**32) * member["weight"]
        weight += member["weight"]
    mean = [np.float32(float(value) / (weight * 2.0**32)) for value in total]
    assert np.array(mean, "<f4").tobytes().hex() == vectors["sum"]["mean"]
    assert weight == vectors["sum"]["weight"]


@pytest.mark.parametrize("case", load("plain.json")["refused"], ids=lambda case: case["why"])
def test_refused_plain_messages(case: dict[str, str]) -> None:
    limits = load("plain.json")
    with pytest.raises(UpdateError, match=case["error"]):
        decode(
            "site-0",
            bytes.fromhex(case["message"]),
            size=limits["size"],
            max_weight=limits["max_weight"],
        )


def hkdf(secret: bytes, label: str, context: bytes) -> bytes:
    """RFC 5869 with an empty salt, 32 bytes."""
    key = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(key, b"fedge/" + label.encode() + b"/v1\x00" + context + b"\x01", "sha256")


def keystream(key: bytes, count: int) -> Any:
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(cipher.update(bytes(2 * count)), "<u2")


def x25519(secret: bytes, public: bytes | None = None) -> bytes:
    key = X25519PrivateKey.from_private_bytes(secret)
    if public is None:
        return key.public_key().public_bytes_raw()
    return key.exchange(X25519PublicKey.from_public_bytes(public))


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
