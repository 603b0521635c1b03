"""P-2.3: the numbers of a tensor's stream."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

from .basics import Reals, halved


def words(named: int, count: int) -> Any:
    octets = hashlib.shake_256(b"fedge/stream/v1\0" + named.to_bytes(8, "little")).digest(4 * count)
    return 2 * np.frombuffer(octets, "<u4").astype(np.int64) + 1 - 2**32


def deviates(named: int, count: int) -> Reals:
    drawn: Reals = words(named, 12 * count).reshape(count, 12).sum(1) / 2.0**33
    return drawn


def orthonormal(named: int, length: int, r: int) -> Reals:
    """(r, length): q_0, q_1, ..."""
    done: list[Reals] = []
    for v in deviates(named, r * length).reshape(r, length):
        for _ in range(2):
            shares = [halved(q * v) for q in done]
            moved = [c * q for c, q in zip(shares, done, strict=True)]
            v = v - halved(np.array(moved).reshape(len(done), length))
        done.append(v / math.sqrt(halved(v * v)))
    return np.array(done)
