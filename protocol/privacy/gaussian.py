"""The discrete Gaussian, drawn exactly from a table by cryptographic randomness. (P-7.1)

Never numpy's generator: it is predictable, and floating-point Gaussians leak. A table of one 63-bit
word per entry would add a term far above delta to the guarantee, so entries have two.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
DIGITS, CUT_BITS, WORD = 60, 150, 63


@dataclass(frozen=True, eq=False)
class Table:
    """``P(|X| <= i)`` for i = 0, 1, … as 126-bit integers: ``high`` and ``low`` words of 63 bits."""

    high: Words
    low: Words


@lru_cache(maxsize=4)
def table(sigma: Decimal) -> Table:
    """The table of N_Z(0, sigma^2), cut where the weight falls below 2^-150. sigma is exact."""
    with localcontext() as context:
        context.prec = DIGITS
        cut, factor = Decimal(2) ** -CUT_BITS, -1 / (2 * sigma * sigma)
        weights, k = [Decimal(1)], 1
        while (weight := (factor * (k * k)).exp()) > cut:
            weights.append(2 * weight)
            k += 1
        total, running, scaled = sum(weights), Decimal(0), []
        for weight in weights[:-1]:  # the last one is certain
            running += weight
            scaled.append(int(running / total * 2 ** (2 * WORD)))
    mask = 2**WORD - 1
    return Table(
        high=np.array([value >> WORD for value in scaled], np.uint64),
        low=np.array([value & mask for value in scaled], np.uint64),
    )


def draw(sigma: Decimal, count: int, key: bytes) -> Integers:
    """(count,) int64 from N_Z(0, sigma^2); ``key`` (32 bytes) is fresh from the operating system."""
    entries = table(sigma)
    stream = Cipher(AES(key), CTR(bytes(16))).encryptor()
    words = np.frombuffer(stream.update(bytes(8 * count)), np.uint64)
    high = words & np.uint64(2**WORD - 1)
    magnitude = np.searchsorted(entries.high, high, side="right").astype(np.int64)
    ties = np.flatnonzero(np.searchsorted(entries.high, high, side="left") != magnitude)
    low = np.frombuffer(stream.update(bytes(8 * len(ties))), np.uint64) >> np.uint64(1)
    for at, word in zip(ties.tolist(), low.tolist(), strict=True):
        # Of the entries with this high word only those count whose low word is not above ours.
        first = int(np.searchsorted(entries.high, high[at], side="left"))
        same = entries.low[first : magnitude[at]]
        magnitude[at] = first + int(np.count_nonzero(same <= np.uint64(word)))
    return np.where(words >> np.uint64(WORD) == 1, -magnitude, magnitude)
