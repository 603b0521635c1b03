"""P-6.9, P-7.2: from the words of a sum to the mean update and the counters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .basics import Vector, Words
from .masks import stream

COUNTER_BITS = 40


def blocks(size: int) -> tuple[int, int]:
    """(h, nblocks) of P-6.9."""
    h = 1
    while h < size and h < 16_384:
        h *= 2
    while True:
        number = math.ceil(size / h)
        number += 1 - number % 2
        if 100 * h * number <= 103 * size + 6400:
            return h, number
        h //= 2


def padded(size: int) -> int:
    """d' of P-6.9."""
    h, number = blocks(size)
    return h * number


def turned_back(values: Any, size: int, rotation: bytes) -> Any:
    """(d',) int64 to (size,) int64: h times the inverse of the rotation."""
    h, number = blocks(size)
    length = h * number
    octets = np.frombuffer(stream(rotation, "aes-256-ctr", -(-2 * length // 8)), np.uint8)
    minus = np.unpackbits(octets, bitorder="little")
    for turn in (1, 0):
        rows = values.reshape(number, h)
        step = 1
        while step < h:
            pairs = rows.reshape(number, -1, 2, step)
            low, high = pairs[:, :, 0], pairs[:, :, 1]
            rows = np.stack((low + high, low - high), 2).reshape(number, h)
            step *= 2
        flat = rows.T.reshape(-1)  # place p of block k was coordinate p * nblocks + k
        values = np.where(minus[turn * length : (turn + 1) * length], -flat, flat)
    return values[:size]


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
        scale = reach / ((self.q * blocks(self.size)[0]) * n)
        mean: Vector = (flat.astype(np.float64) * scale).astype(np.float32)
        return mean

    def counters(self, words: Words) -> list[int]:
        digits = [int(word) for word in words[padded(self.size) :]]
        rows = [digits[at : at + self.digits] for at in range(0, len(digits), self.digits)]
        return [sum(d << self.digit * place for place, d in enumerate(row)) for row in rows]
