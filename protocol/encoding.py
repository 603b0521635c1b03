"""Canonical bytes: one JSON text and one digest for a value, on every platform.

RFC 8785 (JCS) restricted to what needs no number formatting: objects, arrays, strings, integers,
booleans, null. A real number is carried as the string ``float.hex()`` gives, so that no two
implementations can disagree about its digits.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.documents import MOST_VALUES, parse_json

MOST_CANONICAL = 2**26  # bytes that are read


def canonical_json(value: Any) -> bytes:
    """UTF-8 bytes of ``value`` with sorted keys and no spaces; floats become hex strings."""
    return json.dumps(
        _plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a canonical value must be finite")
        return value.hex()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        # JCS sorts by UTF-16 code units; ASCII keys sort alike under both orders.
        if not all(isinstance(key, str) and key.isascii() for key in value):
            raise ValueError("the keys of a canonical object are ASCII strings")
        return {key: _plain(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} has no canonical form")


def parse_canonical(data: bytes, *, most: int = MOST_CANONICAL, values: int = MOST_VALUES) -> Any:
    """The value of canonical JSON bytes. Raises ValueError for any other spelling of it, or more of it.

    No real numbers, no repeated keys, no integer of 2^53 or more in magnitude, no more than 32 levels.
    """
    value = parse_json(data, most=most, values=values)
    _check_exact(value)
    if canonical_json(value) != data:
        raise ValueError("not in canonical form")
    return value


def _check_exact(value: Any) -> None:
    """Of few levels already: no whole number that a float64 would round. (RFC 8785, 3.2.2.3)"""
    if isinstance(value, int) and not -(2**53) < value < 2**53:
        raise ValueError("an integer of 2^53 or more")
    for inner in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        _check_exact(inner)


def base64_text(data: bytes) -> str:
    """RFC 4648, with padding: the spelling that :func:`base64_bytes` takes."""
    return base64.b64encode(data).decode()


def base64_bytes(text: str) -> bytes:
    """The reverse, of that spelling alone: bits that are left over are 0, padding is what is needed.

    A decoder that lets them pass gives several texts, and so several digests, to what is one thing. Raises
    ValueError.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # the latter of characters outside ASCII
        raise ValueError("is not base64") from None
    if base64_text(data) != text:
        raise ValueError("is not the one spelling of its base64")
    return data


def hasher_of(tag: str) -> hashlib._Hash:
    """SHA-256 that has taken in ``"fedge/" tag "/v1" 0x00``: domain-separated."""
    return hashlib.sha256(b"fedge/" + tag.encode() + b"/v1\x00")


def digest(tag: str, message: bytes) -> str:
    """``SHA-256("fedge/" tag "/v1" 0x00 message)`` as 64 hex digits."""
    hasher = hasher_of(tag)
    hasher.update(message)
    return hasher.hexdigest()


def vector_digest(vector: npt.NDArray[np.float32]) -> str:
    """The identity of an adapter: its flat float32 vector, little-endian. (P-2.4)"""
    return digest("adapter", np.ascontiguousarray(vector, dtype="<f4").tobytes())


def seed_from(*parts: object) -> int:
    """A 63-bit seed from named parts, so that no two purposes ever share a random stream. (P-1.4)"""
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.sha256(b"fedge/seed/v1\x00" + text).digest()[:8], "big") >> 1
