"""A randomised rotation: spreads a vector's energy evenly over its coordinates. (P-6.9)

Two turns: signs, Walsh-Hadamard transforms of blocks, and the blocks dealt anew, so that the second turn
mixes what the first left apart. Blocks are short, so that a vector grows by 3 % and 64 at most. Of any
vector, also one with a single coordinate, the result is spread like Gaussian noise: after a turn a
coordinate is a sum over its block with random signs, and each block of the second turn holds an even
sample of every block of the first (ADR 0030 measures it). Public and orthogonal: norms stay what they are.
Its inverse on integers is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.errors import PlanError
from protocol.secagg.primitives import Suite, add_mask

BLOCK = 2**14  # longest transform
GROWTH, CONSTANT = 3, 64  # a vector grows by so many percent and so many coordinates at most
TURNS = 2
LONGEST = BLOCK**2  # coordinates: one alone still reaches every other in two turns
Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Of vectors of ``size`` coordinates; ``seed`` (32 bytes) gives the public signs.

    Raises PlanError for more than 2^28 coordinates.
    """

    size: int
    seed: bytes

    def __post_init__(self) -> None:
        if self.size > LONGEST:
            raise PlanError(
                f"a round trains {self.size} numbers, a secret sum holds {LONGEST} at most",
                "a lower adapter.rank or fewer adapter.targets",
            )

    @property
    def transform(self) -> int:
        """h: length of a block, the largest power of two up to 2^14 with which d' is within its bound."""
        return _block_length(self.size)

    @property
    def padded(self) -> int:
        """d': length of the rotated vector, 1.03 size + 64 at most."""
        return self.transform * _blocks(self.size, self.transform)

    def forward(self, vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(size,) to (padded,), with the same L2 norm; block after block."""
        turned, length = np.zeros(self.padded), self.transform
        turned[: self.size] = vector
        for signs in self._signs():
            turned *= signs
            # Coordinate i goes to block i mod nblocks: contiguous blocks would have uneven energy.
            turned = _hadamard(turned.reshape(length, -1)).T.reshape(-1)
        turned /= length
        return turned

    def backward(self, rotated: Integers) -> Integers:
        """(padded,) integers to (size,) integers: ``transform`` times the inverse, exactly.

        Values below 2^33 in magnitude have norm ``2^33 sqrt(d')`` at most; a turn multiplies the norm by
        ``sqrt(h)``, the steps inside it by less. Hence nothing on the way is beyond
        ``h 2^33 sqrt(d') < 2^14 2^33 2^15 = 2^62`` in magnitude.
        """
        turned = rotated
        for signs in self._signs()[::-1]:
            turned = _hadamard(turned.reshape(-1, self.transform).T.copy()).reshape(-1)
            turned *= signs
        return turned[: self.size]

    def _signs(self) -> npt.NDArray[np.int8]:
        """(2, padded): of each turn."""
        count = TURNS * self.padded
        stream = np.zeros(-(-count // 16), np.uint16)
        add_mask(stream, self.seed, sign=1, suite=Suite.AES_256_CTR)
        octets = stream.astype("<u2").view(np.uint8)
        bits = np.unpackbits(octets, bitorder="little")[:count]
        signs: npt.NDArray[np.int8] = 1 - 2 * bits.astype(np.int8)
        return signs.reshape(TURNS, -1)


@lru_cache(maxsize=64)
def _block_length(size: int) -> int:
    length = min(BLOCK, 1 << max(size - 1, 0).bit_length())
    while 100 * length * _blocks(size, length) > (100 + GROWTH) * size + 100 * CONSTANT:
        length //= 2
    return length


def _blocks(size: int, length: int) -> int:
    # Odd: with an even number a block of the second turn would sample each of the first turn's at
    # places that agree in their lowest bits, where transforms are correlated.
    return -(-size // length) | 1


def _hadamard(blocks: Array) -> Array:
    """Fast Walsh-Hadamard transform of each column, in place: applied twice it multiplies by h."""
    step = 1
    while step < len(blocks):
        pairs = blocks.reshape(-1, 2, step * blocks.shape[1])
        upper, lower = pairs[:, 0], pairs[:, 1]
        difference = upper - lower
        upper += lower
        lower[:] = difference
        step *= 2
    return blocks


def sum_of_squares(values: Integers) -> int:
    """Exactly, of int64 values up to 2^33 in magnitude: the square of one need not fit 64 bits."""
    high, low = values >> 16, values & 0xFFFF
    return (int(high @ high) << 32) + (int(high @ low) << 17) + int(low @ low)
