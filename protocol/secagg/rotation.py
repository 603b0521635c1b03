"""A randomised Hadamard rotation: spreads a vector's energy evenly over its coordinates. (P-6.9)

Public and orthogonal: norms stay what they are. Its inverse on integers is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.secagg.primitives import Suite, add_mask

BLOCK = 2**16  # longest transform; longer vectors are dealt to blocks with stride
Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Of vectors of ``size`` coordinates; ``seed`` (32 bytes) gives the public signs."""

    size: int
    seed: bytes

    @property
    def padded(self) -> int:
        """Length of the rotated vector: a power of two, or a multiple of 2^16 above it."""
        if self.size <= BLOCK:
            return 1 << max(self.size - 1, 0).bit_length()
        return -(-self.size // BLOCK) * BLOCK

    @property
    def transform(self) -> int:
        """h: length of one Hadamard transform."""
        return min(self.padded, BLOCK)

    def forward(self, vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(size,) to (padded,), with the same L2 norm; block after block."""
        padded = np.zeros(self.padded)
        padded[: self.size] = vector
        padded *= self._signs()
        # Coordinate i goes to block i mod nblocks: contiguous blocks would have uneven energy.
        blocks = np.ascontiguousarray(padded.reshape(self.transform, -1).T)
        return (_hadamard(blocks) / math.sqrt(self.transform)).reshape(-1)

    def backward(self, rotated: Integers) -> Integers:
        """(padded,) integers to (size,) integers: ``sqrt(transform)`` times the inverse, exactly."""
        blocks = _hadamard(rotated.reshape(-1, self.transform))
        flat: Integers = np.ascontiguousarray(blocks.T).reshape(-1)
        flat *= self._signs()
        return flat[: self.size]

    def _signs(self) -> npt.NDArray[np.int8]:
        stream = np.zeros(-(-self.padded // 16), np.uint16)
        add_mask(stream, self.seed, sign=1, suite=Suite.AES_256_CTR)
        octets = stream.astype("<u2").view(np.uint8)
        bits = np.unpackbits(octets, bitorder="little")[: self.padded]
        signs: npt.NDArray[np.int8] = 1 - 2 * bits.astype(np.int8)
        return signs


def _hadamard(blocks: Array) -> Array:
    """Fast Walsh-Hadamard transform of each row, unnormalised: applied twice it multiplies by h."""
    rows, length = blocks.shape
    step = 1
    while step < length:
        view = blocks.reshape(rows, -1, 2, step)
        upper = view[:, :, 0] + view[:, :, 1]
        lower = view[:, :, 0] - view[:, :, 1]
        blocks = np.stack((upper, lower), axis=2).reshape(rows, length)
        step *= 2
    return blocks


def sum_of_squares(values: Integers) -> int:
    """Exactly, of int64 values up to 2^33 in magnitude: the square of one need not fit 64 bits."""
    high, low = values >> 16, values & 0xFFFF
    return (int(high @ high) << 32) + (int(high @ low) << 17) + int(low @ low)
