"""Random numbers that everybody draws alike, from a seed by the words of P-2.3.

A library's generator is no law: numpy may change what its distributions draw, its normal deviates need
the platform's logarithm, and a QR decomposition has the order of additions of whatever BLAS is there.
Here a stream of SHAKE-256 gives integers, and what is made of them are single additions, products,
divisions and square roots in float64, in a stated order: the same bits on every machine.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

from protocol.halving import sum_by_halves

PARTS = 12  # of a normal deviate: a sum of so many has four times the variance wanted
DEVIATE = PARTS / 2  # above every magnitude of one
Wide = npt.NDArray[np.float64]


def odd_words(seed: int, count: int) -> npt.NDArray[np.int64]:
    """(count,) odd integers between -2^32 and 2^32: each 32-bit word w of the stream as ``2w + 1 - 2^32``."""
    stream = hashlib.shake_256(b"fedge/stream/v1\x00" + seed.to_bytes(8, "little"))
    words = np.frombuffer(stream.digest(4 * count), "<u4").astype(np.int64)
    return 2 * words + 1 - 2**32


def uniform(seed: int, shape: tuple[int, ...]) -> Wide:
    """Row-major numbers strictly between -1 and 1, none of them 0, as likely above it as below."""
    drawn = odd_words(seed, math.prod(shape)).astype(np.float64) * 2.0**-32
    return drawn.reshape(shape)


def normal(seed: int, shape: tuple[int, ...]) -> Wide:
    """Row-major deviates of mean 0 and deviation 1, at most 6: sums of twelve words over 2^33."""
    words = odd_words(seed, PARTS * math.prod(shape)).reshape(-1, PARTS)
    drawn: Wide = words.sum(axis=1).astype(np.float64) * 2.0**-33
    return drawn.reshape(shape)


def orthonormal_columns(seed: int, rows: int, columns: int) -> Wide:
    """A random ``(rows, columns)`` matrix with orthonormal columns; columns <= rows.

    Gram-Schmidt of normal deviates, drawn column by column, where every column is cleared of those
    before it twice, which is enough for any rank. Of exactly Gaussian deviates it would be
    Haar-distributed (arXiv math-ph/0609050). Raises ValueError for more columns than rows.
    """
    if columns > rows:
        raise ValueError("there are no more orthonormal columns than rows")
    drawn = normal(seed, (columns, rows))
    done = np.empty((columns, rows))
    for number, column in enumerate(drawn):
        before = done[:number]
        for _ in range(2):
            shares = sum_by_halves((before * column).T)
            column -= sum_by_halves(before * shares[:, None])
        done[number] = column / math.sqrt(float(sum_by_halves(column * column)))
    return done.T
