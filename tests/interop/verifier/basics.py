"""P-1.1, P-1.4, P-6.1: canonical JSON, named hashes, keys and signatures."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from math import comb
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Reals = np.ndarray[Any, np.dtype[np.float64]]
Vector = np.ndarray[Any, np.dtype[np.float32]]
Words = np.ndarray[Any, np.dtype[Any]]
Tensors = dict[str, Vector]


def tagged(tag: str, message: bytes) -> bytes:
    return b"fedge/" + tag.encode() + b"/v1\0" + message


def named_hash(tag: str, message: bytes) -> bytes:
    """HASH of P-1.1 as bytes."""
    return hashlib.sha256(tagged(tag, message)).digest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def derived(secret: bytes, label: str, context: bytes, length: int = 32) -> bytes:
    """KDF of P-6.1."""
    return HKDF(SHA256(), length, b"", tagged(label, context)).derive(secret)


def check_signature(public: bytes, tag: str, message: bytes, signature: bytes) -> None:
    """SIG of P-6.1."""
    Ed25519PublicKey.from_public_bytes(public).verify(signature, tagged(tag, message))


def real(number: float) -> str:
    """P-1.1 by hand: the mantissa's 52 bits as 13 digits."""
    bits = int.from_bytes(np.float64(number).tobytes(), "little")
    sign, exponent, mantissa = bits >> 63, bits >> 52 & 0x7FF, bits & (2**52 - 1)
    assert exponent != 0x7FF
    if exponent == mantissa == 0:
        return "-0x0.0p+0" if sign else "0x0.0p+0"
    power = exponent - 1023 if exponent else -1022
    return f"{'-' * sign}0x{min(exponent, 1)}.{mantissa:013x}p{power:+d}"


def canonical(value: Any) -> bytes:
    """P-1.1."""

    def plain(one: Any) -> Any:
        if isinstance(one, dict):
            assert all(key.isascii() for key in one)
            return {key: plain(each) for key, each in one.items()}
        if isinstance(one, list):
            return [plain(each) for each in one]
        return real(one) if isinstance(one, float) else one

    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def octets(text: str) -> bytes:
    """P-1.1: base64 in its one spelling."""
    data = base64.b64decode(text, validate=True)
    assert base64.b64encode(data).decode() == text
    return data


def seed(*parts: object) -> int:
    """P-1.4."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(b"fedge/seed/v1\0" + text).digest()[:8], "big") >> 1


def halved(parts: Any) -> Any:
    """P-6.14: of n parts (along the first axis) the last floor(n/2) are added to the first ones."""
    parts = np.array(parts)
    if not len(parts):
        return np.zeros(parts.shape[1:])
    while len(parts) > 1:
        moved = len(parts) // 2
        kept = parts[: len(parts) - moved].copy()
        kept[:moved] += parts[len(parts) - moved :]
        parts = kept
    return parts[0]


def largest_sum(plan: Mapping[str, Any]) -> int:
    """The largest number of clients in a sum; a plan without clients to spare says nothing of them. (P-1.2, P-6.7)"""
    spare, size = int(plan["cohort"].get("spare", 0)), int(plan["cohort"]["size"])
    assert ("spare" in plan["cohort"]) == (spare > 0)
    most = -(-(size + spare) // int(plan["secrecy"]["groups"]))
    assert not spare or most + -most * size // (size + spare) <= opens_without(most)
    return most


@cache
def opens_without(clients: int) -> int:
    """P-4.5: how many of a sum's clients it may close without."""
    if clients <= 128:
        return clients - 2 - 2 * (clients - 1) // 3
    for lost in range(clients - 2 * clients // 3):
        others = range(27, 81)
        ways = sum(comb(lost, i) * comb(clients - 1 - lost, 80 - i) for i in others)
        if 100 * clients * ways > comb(clients - 1, 80):
            return lost - 1
    return clients - 2 * clients // 3 - 1
