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
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from protocol.encoding import canonical_json
from protocol.errors import UpdateError
from protocol.exchange.plain import decode
from protocol.secagg.agreement import Keys
from tests.vectors.make import FILES, FOLDER, rendered
from tests.vectors.ring import refuse
from tests.vectors.secagg import attempt


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


def halved(parts: list[float]) -> float:
    """P-6.14: of n numbers the last floor(n/2) are added to the first ones, until one is left."""
    while len(parts) > 1:
        kept = len(parts) - len(parts) // 2
        parts = [
            parts[i] + (parts[kept + i] if kept + i < len(parts) else 0.0) for i in range(kept)
        ]
    return parts[0]


def drawn(seed: int, tensor: str, count: int) -> list[int]:
    """The odd words of P-2.3."""
    parts = f"initial\x1f{seed}\x1f{tensor}".encode()
    first = hashlib.sha256(b"fedge/seed/v1\x00" + parts).digest()[:8]
    named = (int.from_bytes(first, "big") >> 1).to_bytes(8, "little")
    stream = hashlib.shake_256(b"fedge/stream/v1\x00" + named).digest(4 * count)
    return [2 * word + 1 - 2**32 for word in struct.unpack(f"<{count}I", stream)]


def deviates(seed: int, tensor: str, count: int) -> list[float]:
    words = drawn(seed, tensor, 12 * count)
    return [sum(words[at : at + 12]) / 2.0**33 for at in range(0, len(words), 12)]


def orthonormal(seed: int, tensor: str, rows: int, columns: int) -> list[list[float]]:
    """The columns, one number at a time."""
    numbers, done = deviates(seed, tensor, rows * columns), []
    for at in range(columns):
        column = numbers[at * rows : (at + 1) * rows]
        for _ in range(2 if done else 0):
            shares = [halved([a * b for a, b in zip(q, column, strict=True)]) for q in done]
            column = [
                value - halved([share * q[i] for share, q in zip(shares, done, strict=True)])
                for i, value in enumerate(column)
            ]
        norm = math.sqrt(halved([value * value for value in column]))
        done.append([value / norm for value in column])
    return done


def test_round_0() -> None:
    """P-2.3 in Python's own floats: no array, no library, the same bytes."""
    for case in load("start.json")["round_0"]:
        seed, std = case["seed"], round(float.fromhex(case["embedding_std"]) * 4096) / 4096
        cores = any(name.endswith(".lora_R") for name in case["tensors"])
        for name, tensor in case["tensors"].items():
            shape = tensor["shape"]
            count = math.prod(shape)
            values = [0.0] * count
            if name.endswith(".lora_A") and cores:
                rows = orthonormal(seed, name, shape[1], shape[0])
                values = [value for row in rows for value in row]
            elif name.endswith(".lora_B") and cores:
                columns = orthonormal(seed, name, *shape)
                values = [column[row] for row in range(shape[0]) for column in columns]
            elif name.endswith(".lora_A"):
                bound = 1.0 / math.sqrt(shape[1])
                values = [word / 2.0**32 * bound for word in drawn(seed, name, count)]
            elif name == "soft_prompt":
                values = [deviate * std for deviate in deviates(seed, name, count)]
            elif name == "classifier.weight":
                values = [deviate * 0.02 for deviate in deviates(seed, name, count)]
            assert struct.pack(f"<{count}f", *values).hex() == tensor["bytes"], name


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
