"""The plain exchange with central noise: the coordinator sees every update, clips it and noises the sum.

For research in plaintext: protects readers of what is released, not clients from the coordinator.
(P-7.6)
"""

from __future__ import annotations

import numpy as np

from protocol.exchange import Aggregate
from protocol.exchange.plain import FRACTION_BITS, PlainCoordinator
from protocol.layout import Vector
from protocol.plan import Plan
from protocol.secagg.primitives import RandomBytes


class CentralCoordinator(PlainCoordinator):
    """Sum of clipped updates plus one Gaussian of standard deviation z c, over a fixed denominator.

    The denominator is the *expected* number of clients, ``cohort.size``: how many were drawn is a
    secret. ``random`` (of the operating system) keys the noise; floating-point Gaussians are not
    proof against an adversary who reads their last bits (Mironov 2012), hence research.
    """

    def __init__(self, size: int, *, plan: Plan, random: RandomBytes) -> None:
        super().__init__(size, max_weight=1, metrics=plan.task.METRICS)
        self._plan, self._random = plan, random

    def _prepared(self, update: Vector) -> Vector:
        norm = float(np.linalg.norm(update.astype(np.float64)))
        clip = self._plan.privacy.clip
        return update if norm <= clip else (update * np.float32(clip / norm * (1 - 2**-20)))

    def unmask(self) -> Aggregate:
        """The noisy mean, of nobody's updates too; no metrics, which would leak."""
        privacy, expected = self._plan.privacy, self._plan.cohort.size
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(self._random(32), "big")))
        noise = rng.normal(0.0, privacy.noise_multiplier * privacy.clip, self._size)
        total = self._fixed.astype(np.float64) / 2.0**FRACTION_BITS + noise
        mean = (total / expected).astype(np.float32)
        clients = tuple(sorted(self._clients))
        return Aggregate(mean=mean, weight=self._weight, metrics={}, clients=clients)
