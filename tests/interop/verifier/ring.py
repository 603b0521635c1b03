"""P-6.9, P-7.2: from the words of a sum to the mean update and the counters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .basics import Vector, Words
from .masks import stream

COUNTER_BITS = 40


def padded(size: int) -> int:
    """d' of P-6.9."""
    if size > 65_536:
        return -(-size // 65_536) * 65_536
    return 1 << (size - 1).bit_length()


def turned_back(values: Any, size: int, rotation: bytes) -> Any:
    """(d',) int64 to (size,) int64: sqrt(h) times the inverse of the rotation."""
    length = len(values)
    h = min(length, 65_536)
    rows = values.reshape(-1, h)
    step = 1
    while step < h:
        pairs = rows.reshape(len(rows), -1, 2, step)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        rows = np.stack((low + high, low - high), 2).reshape(len(rows), h)
        step *= 2
    flat = rows.T.reshape(-1)  # place p of block k is coordinate p * nblocks + k
    octets = np.frombuffer(stream(rotation, "aes-256-ctr", -(-length // 8)), np.uint8)
    minus = np.unpackbits(octets, bitorder="little")[:length]
    return np.where(minus, -flat, flat)[:size]


class Exact:
    """The ring of P-6.9 for so many members."""

    def __init__(self, *, size: int, bits: int, clip: float, members: int) -> None:
        self.size, self.bits, self.clip = size, bits, clip
        self.q = (2**bits - 1) // members
        self.digit = int(math.log2(self.q + 1))
        while 2**self.digit > self.q + 1:
            self.digit -= 1
        self.digits = -(-COUNTER_BITS // self.digit)

    def count(self, counters: int) -> int:
        return padded(self.size) + counters * self.digits

    def mean(self, words: Words, n: int, rotation: bytes) -> Vector:
        length = padded(self.size)
        values = 2 * words[:length].astype(np.int64) - n * self.q
        flat = turned_back(values, self.size, rotation)
        reach = (5.0 * self.clip) / math.sqrt(length)
        scale = reach / ((self.q * math.sqrt(min(length, 65_536))) * n)
        mean: Vector = (flat.astype(np.float64) * scale).astype(np.float32)
        return mean

    def counters(self, words: Words) -> list[int]:
        digits = [int(word) for word in words[padded(self.size) :]]
        rows = [digits[at : at + self.digits] for at in range(0, len(digits), self.digits)]
        return [sum(d << self.digit * place for place, d in enumerate(row)) for row in rows]
