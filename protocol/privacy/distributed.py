"""Distributed discrete Gaussian: what a client adds, and what the sum then guarantees. (P-7.2)

Symbols of the paper: c ``clip``, g ``grid``, s ``local_noise``, z ``multiplier``, D ``padded``,
n_h ``honest``; zCDP with rho and an additive xi per round (its Theorem 1 and Proposition 14).
What clients and auditors compute for themselves has products and square roots only, or is the number
nearest to a value in 60 digits: the ``exp``, ``**`` and ``log`` of a platform's library may differ in
the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from protocol.errors import PlanError, UpdateError
from protocol.layout import Vector
from protocol.privacy.accounting import Spent
from protocol.privacy.gaussian import DIGITS, draw
from protocol.secagg.counters import IMPOSSIBLE
from protocol.secagg.primitives import RandomBytes, Word, word_type
from protocol.secagg.ring import finite_norm
from protocol.secagg.rotation import Integers, Rotation, sum_of_squares

INFLATION = 1.01  # of the sensitivity, by rounding to the grid
TRIES, KAPPA = 64, 4.0  # roundings of a vector; standard deviations that fit the ring
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640629")
LEAST_EXPONENT = -1000
CHANCE = 45.0  # honest noise is beyond the bound of its norm with probability e^-45 at most
GRID_BITS = 40  # the grid is a multiple of 2^-40: exact in every language


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """One round's noise. ``honest`` is the fewest honest summands ever counted on.

    ``summands`` is the most that may be summed, ``size`` d.
    """

    size: int
    clip: float
    multiplier: float
    honest: int
    summands: int
    rotation: bytes

    @property
    def turn(self) -> Rotation:
        """The rotation of the vector."""
        return Rotation(size=self.size, seed=self.rotation)

    @property
    def grid(self) -> float:
        """g: the largest with ``g B <= 1.01 c``, by bisection, cut to a multiple of 2^-40."""
        return _largest_grid(self.clip, self.turn.padded)

    @property
    def local_noise(self) -> float:
        """s = z c / sqrt(n_h): each client's noise, so that the honest ones add up to z c."""
        return self.multiplier * self.clip / math.sqrt(self.honest)

    @property
    def sigma(self) -> Decimal:
        """s / g with 12 decimals: exact, so that every client has the same table."""
        return Decimal(f"{self.local_noise / self.grid:.12f}")

    @property
    def bits(self) -> int:
        """Of the ring. Raises PlanError when no ring is wide enough."""
        if (bits := self.ring_bits) is None:
            raise PlanError("the noisy sum needs more than 32 bits", "fewer clients or more noise")
        return bits

    @property
    def ring_bits(self) -> int | None:
        """The smallest of 16, 20, 24 and 32 in which sums do not wrap within 4 sigma."""
        most, grid, noise = self.clip * self.summands, self.grid, self.local_noise
        spread = most * most / self.turn.padded + (grid * grid / 4 + noise * noise) * self.summands
        needed = 2 * KAPPA * math.sqrt(spread) / grid
        return next((bits for bits in (16, 20, 24, 32) if needed <= 2**bits), None)

    def encode(self, vector: Vector, rng: np.random.Generator, random: RandomBytes) -> Word:
        """(d,) float32 to (D,) words with this client's noise. Raises UpdateError after 64 tries.

        ``rng`` rounds, ``random`` (of the operating system) makes the noise; privacy rests on the
        bound of the integers and on the noise, not on the rounding.
        """
        values, norm = vector.astype(np.float64), finite_norm(vector)
        scale = min(1.0, self.clip / norm) if norm else 1.0
        turned = self.turn.forward(values * scale) / self.grid
        whole = self._rounded(turned, rng)
        noisy = whole + draw(self.sigma, len(whole), random(32))
        words: Word = (noisy & (2**self.bits - 1)).astype(word_type(self.bits))
        return words

    def _rounded(
        self, values: npt.NDArray[np.float64], rng: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        bound = norm_bound(self.clip, self.grid, self.turn.padded)
        floor = np.floor(values)
        for _ in range(TRIES):
            whole = (floor + (rng.random(len(values)) < values - floor)).astype(np.int64)
            # On the integers: what floating point did before cannot break the bound.
            if float(whole @ whole) <= bound * bound:
                return whole
        raise UpdateError(
            "this client's update cannot be rounded within its bound", "lower local.learning_rate"
        )

    def decode(self, words: Word, summands: int) -> Vector:
        """The noisy mean, (d,) float32. A sum that wrapped costs accuracy, never privacy."""
        scale = self.grid / (self.turn.transform * summands)
        return (self.turn.backward(self._centred(words)).astype(np.float64) * scale).astype(
            np.float32
        )

    def _centred(self, words: Word) -> Integers:
        half = 2 ** (self.bits - 1)
        centred: Integers = ((words.astype(np.int64) + half) % 2**self.bits) - half
        return centred

    def verify_sum(self, words: Word, summands: int) -> None:
        """What ``summands`` honest clients can have made together. Raises UpdateError. (P-6.17)

        Their updates have norm n B at most. Their noise is sub-Gaussian: its norm is above
        ``sigma sqrt(n (D + 2 sqrt(D t) + 2 t))`` with probability e^-t at most (Hsu, Kakade and Zhang 2012),
        t = 45. Where noise outweighs updates this bounds little. Wrapping only shortens.
        """
        padded, sigma = self.turn.padded, float(self.sigma)
        updates = summands * norm_bound(self.clip, self.grid, padded)
        spread = padded + 2 * math.sqrt(padded * CHANCE) + 2 * CHANCE
        most = updates + sigma * math.sqrt(summands * spread)
        squares = sum_of_squares(self._centred(words))
        if squares > math.floor(most * most):
            norm, top = (self.grid * each / summands for each in (math.sqrt(squares), most))
            raise UpdateError(
                f"the noisy mean has norm {norm:.4g}, that of {summands} honest clients {top:.4g} at most",
                IMPOSSIBLE,
            )

    def spent(self) -> Spent:
        """What one round costs every client in it."""
        padded = self.turn.padded
        sensitivity = self.grid * norm_bound(self.clip, self.grid, padded)
        ratio = float(self.sigma)
        noise = ratio * self.grid
        rho = sensitivity * sensitivity / (2 * self.honest * (noise * noise))
        return Spent(rho=rho, xi=_nearest_xi(self.sigma, self.honest, padded))


@lru_cache(maxsize=64)
def _largest_grid(clip: float, padded: int) -> float:
    low, high = 0.0, clip
    for _ in range(80):
        middle = (low + high) / 2
        fits = middle * norm_bound(clip, middle, padded) <= INFLATION * clip
        low, high = (middle, high) if fits else (low, middle)
    return float(math.floor(low * 2**GRID_BITS) / 2**GRID_BITS)


@lru_cache(maxsize=64)
def _nearest_xi(sigma: Decimal, honest: int, padded: int) -> float:
    """tau D, the float64 nearest to it: what the discreteness of the noise costs. (P-7.3)"""
    with localcontext() as context:
        context.prec = DIGITS
        factor = -2 * PI * PI * sigma * sigma
        if factor / 2 < LEAST_EXPONENT:  # of the largest term: the float64 nearest to the sum is 0
            return 0.0
        terms = ((factor * k / (k + 1)).exp() for k in range(1, honest))
        return float(10 * padded * sum(terms, Decimal(0)))


def norm_bound(clip: float, grid: float, padded: int) -> float:
    """B: the largest L2 norm of a rounded vector, in units of the grid.

    With beta = e^-1/2, so that a rounding is kept with probability 1 - beta at least, the paper's
    ``sqrt(2 ln(1/beta))`` is 1.
    """
    reach, root = clip / grid, math.sqrt(padded)
    likely = reach * reach + padded / 4 + (reach + root / 2)
    return min(reach + root, math.sqrt(likely))
