"""Real vectors as integers in a ring, so that their sum comes back exactly. (P-6.9)

Clip, rotate by randomised Hadamard transforms (so that energy spreads evenly and few levels
suffice), round stochastically to ``q`` levels. Integers such as example counts travel beside it as
digits. The decoded sum is integer arithmetic until the last multiplication: every platform gets the
same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protocol.errors import UpdateError
from protocol.layout import Vector
from protocol.secagg.counters import IMPOSSIBLE
from protocol.secagg.primitives import Word, word_type
from protocol.secagg.rotation import Integers, Rotation, sum_of_squares

SIGMAS = 5.0  # range of a rotated coordinate in standard deviations


@dataclass(frozen=True, kw_only=True)
class Ring:
    """How (d,) float32 vectors of L2 norm up to ``clip`` and small integers enter a sum.

    ``clients`` is the most that may be summed, ``bits`` the ring's, ``rotation`` the 32-byte seed of
    the public signs, ``counters`` the number of integers below 2^``counter_bits`` beside the vector.
    """

    size: int
    clip: float
    clients: int
    bits: int
    rotation: bytes
    counters: int = 0
    counter_bits: int = 40

    @property
    def levels(self) -> int:
        """q: the largest word of one client; ``clients`` of them do not wrap."""
        return int((2**self.bits - 1) // self.clients)

    @property
    def turn(self) -> Rotation:
        """The rotation of the vector."""
        return Rotation(size=self.size, seed=self.rotation)

    @property
    def padded(self) -> int:
        """Length of the rotated vector."""
        return self.turn.padded

    @property
    def reach(self) -> float:
        """L: rotated coordinates are cut to [-L, L]."""
        return SIGMAS * self.clip / math.sqrt(self.padded)

    @property
    def digit_bits(self) -> int:
        """Bits of a counter that fit into one word."""
        return (self.levels + 1).bit_length() - 1

    @property
    def digits(self) -> int:
        """Words per counter."""
        return -(-self.counter_bits // self.digit_bits) if self.counters else 0

    @property
    def count(self) -> int:
        """Words in all: the rotated vector, then the counters' digits."""
        return self.padded + self.counters * self.digits

    def encode(self, vector: Vector, counters: Sequence[int], rng: np.random.Generator) -> Word:
        """(d,) float32 and integers to (count,) words, each at most ``levels``.

        ``rng`` decides the rounding only; secrecy does not rest on it. Raises UpdateError for values that
        are not finite, ValueError for another length and counters outside [0, 2^counter_bits).
        """
        if vector.shape != (self.size,) or len(counters) != self.counters:
            raise ValueError("the vector or the counters have another length")
        if not all(0 <= value < 2**self.counter_bits for value in counters):
            raise ValueError(f"a counter is outside 0..2^{self.counter_bits}")
        norm = finite_norm(vector)
        shrink = min(1.0, self.clip / norm) if norm else 1.0
        rotated = self.turn.forward(vector.astype(np.float64) * shrink)
        reach = self.reach
        scaled = (np.clip(rotated, -reach, reach) + reach) * (self.levels / (2 * reach))
        whole = np.floor(scaled)
        whole += rng.random(len(scaled)) < scaled - whole
        words = np.empty(self.count, word_type(self.bits))
        words[: self.padded] = np.minimum(whole, self.levels)
        base, place = 2**self.digit_bits, self.padded
        for value in counters:
            for _ in range(self.digits):
                value, words[place] = divmod(value, base)
                place += 1
        return words

    def clips(self, vector: Vector) -> bool:
        """Whether ``encode`` shortens the vector. Raises UpdateError when it is not finite."""
        return finite_norm(vector) > self.clip

    def verify_sum(self, words: Word, summands: int) -> None:
        """What ``summands`` honest clients can have made together. Raises UpdateError. (P-6.17)

        Of one client ``2 w - q`` is a vector of norm ``c q / L = sqrt(d') q / 5`` at most, rounded by less
        than 2 in each coordinate. So five times the norm of the centred sum is at most
        ``n sqrt(d') (q + 10)``: compared as squares, in integers, everybody decides alike.
        """
        vector, digits = words[: self.padded], words[self.padded :]
        most = summands * self.levels
        largest = summands * (2**self.digit_bits - 1)
        if int(vector.max()) > most or int(digits.max(initial=0)) > largest:
            raise UpdateError(
                f"a word of the sum is above what {summands} honest clients can send", IMPOSSIBLE
            )
        centred: Integers = 2 * vector.astype(np.int64) - most
        squares = sum_of_squares(centred)
        if 25 * squares > summands**2 * self.padded * (self.levels + 10) ** 2:
            norm = 5 * self.clip * math.sqrt(squares / self.padded) / most
            raise UpdateError(
                f"the mean update has norm {norm:.4g}, no client's may have more than {self.clip:g}",
                IMPOSSIBLE,
            )

    def decode(self, words: Word, summands: int) -> tuple[Vector, list[int]]:
        """The mean of the vectors, (d,) float32, and the sums of the counters."""
        centred: Integers = 2 * words[: self.padded].astype(np.int64) - summands * self.levels
        flat = self.turn.backward(centred)
        scale = self.reach / (self.levels * self.turn.transform * summands)
        mean = (flat.astype(np.float64) * scale).astype(np.float32)
        digits = words[self.padded :].astype(np.int64).reshape(self.counters, -1).tolist()
        base = 2**self.digit_bits
        sums = [sum(digit * base**power for power, digit in enumerate(each)) for each in digits]
        return mean, sums


def finite_norm(vector: Vector) -> float:
    """The L2 norm of an update. Raises UpdateError for one that holds NaN or infinity."""
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if not math.isfinite(norm):
        raise UpdateError("this client's update is not finite", "lower local.learning_rate")
    return norm
