"""Server optimisers on the mean update: pure functions of flat vectors.

Reddi et al., Adaptive Federated Optimization, arXiv 2003.00295 (FedAdam, FedYogi; no bias
correction, as in the paper's Algorithm 2); Hsu et al., arXiv 1909.06335 (FedAvgM). Vectors are the
coordinates of one round's parts; each factor has moments of its own, and rounds that do not train
it leave them alone. Arithmetic is float64, stored values are float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.layout import Vector
from protocol.plan_sections import Server

Wide = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """First and second moment, (d,) float32 each; zeros at the start."""

    first: Vector
    second: Vector

    @classmethod
    def zeros(cls, size: int) -> Moments:
        """Moments before the first round."""
        return cls(first=np.zeros(size, np.float32), second=np.zeros(size, np.float32))


def step(settings: Server, mean: Vector, moments: Moments) -> tuple[Vector, Moments]:
    """(what to add to the adapter, next moments) for a mean update (d,)."""
    if settings.optimizer == "fedavg":
        if settings.learning_rate == 1.0:
            return mean, moments
        return (mean.astype(np.float64) * settings.learning_rate).astype(np.float32), moments
    update, first = mean.astype(np.float64), moments.first.astype(np.float64)
    if settings.optimizer == "fedavgm":
        first = settings.beta1 * first + update
        moved = settings.learning_rate * first
        return moved.astype(np.float32), _moments(first, moments.second)
    first = settings.beta1 * first + (1 - settings.beta1) * update
    second = _second(settings, update, moments.second.astype(np.float64))
    moved = settings.learning_rate * first / (np.sqrt(second) + settings.tau)
    return moved.astype(np.float32), _moments(first, second)


def _second(settings: Server, update: Wide, second: Wide) -> Wide:
    square = update * update
    if settings.optimizer == "fedadam":
        return settings.beta2 * second + (1 - settings.beta2) * square
    return second - (1 - settings.beta2) * square * np.sign(second - square)


def _moments(first: Wide, second: Wide | Vector) -> Moments:
    return Moments(first=first.astype(np.float32), second=second.astype(np.float32))
