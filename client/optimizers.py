"""AdamW and SGD on one flat vector, as torch computes them, in float32 and in place.

Every step is made of elementwise operations in a stated order, and sums by numpy's own pairwise addition,
which no thread count changes: the same gradients give the same bits.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from protocol.layout import TRAINED_HEAD_PARTS, Layout, Vector
from protocol.plan_sections import Local

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch's defaults
TINY = 1e-6  # added to a norm that is divided by, as torch.nn.utils.clip_grad_norm_ does


class Optimizer(Protocol):
    """Moves weights against a gradient."""

    def step(self, weights: Vector, gradient: Vector) -> None:
        """Change ``weights`` (d,) in place; ``gradient`` (d,) may be used up."""


class AdamW:
    """Loshchilov and Hutter, arXiv 1711.05101: the decay is decoupled from the moments."""

    def __init__(self, rates: Vector, *, weight_decay: float) -> None:
        """``rates`` (d,): the learning rate of each coordinate."""
        self._rates = rates
        self._kept = np.float32(1) - rates * np.float32(weight_decay) if weight_decay else None
        self._mean, self._square = np.zeros_like(rates), np.zeros_like(rates)
        self._steps = 0

    def step(self, weights: Vector, gradient: Vector) -> None:
        """See :class:`Optimizer`."""
        first, second = BETAS
        self._steps += 1
        if self._kept is not None:
            weights *= self._kept
        self._mean += np.float32(1 - first) * (gradient - self._mean)
        self._square *= np.float32(second)
        gradient *= gradient
        gradient *= np.float32(1 - second)
        self._square += gradient
        root = np.sqrt(self._square)
        root /= np.float32(math.sqrt(1 - second**self._steps))
        root += np.float32(EPSILON)
        move = self._mean / root
        move *= self._rates
        move /= np.float32(1 - first**self._steps)
        weights -= move


class Sgd:
    """Without momentum; the decay is part of the gradient, as in torch."""

    def __init__(self, rates: Vector, *, weight_decay: float) -> None:
        """``rates`` (d,): the learning rate of each coordinate."""
        self._rates, self._decay = rates, np.float32(weight_decay)

    def step(self, weights: Vector, gradient: Vector) -> None:
        """See :class:`Optimizer`."""
        if self._decay:
            gradient += self._decay * weights
        weights -= self._rates * gradient


class ByRank:
    """An optimiser for each rank, so that a step that leaves ranks out is none for them.

    Their numbers stay, and so do their moments, their decay and the count of their steps.
    """

    def __init__(self, places: npt.NDArray[np.int64], layout: Layout, local: Local) -> None:
        """``places`` (d,): of which rank each coordinate is, from 0."""
        rates, self._places = _rates(layout, local), places
        indices = [np.flatnonzero(places == rank) for rank in range(int(places.max()) + 1)]
        self._ranks = [(index, _optimizer(rates[index], local)) for index in indices]

    def left_out(self, used: int) -> npt.NDArray[np.bool_]:
        """(d,): beyond the first ``used`` ranks."""
        return self._places >= used

    def step(self, weights: Vector, gradient: Vector, used: int) -> None:
        """Change the first ``used`` ranks of ``weights`` (d,) in place."""
        for index, optimizer in self._ranks[:used]:
            part = weights[index]
            optimizer.step(part, gradient[index])
            weights[index] = part


def optimizer_for(layout: Layout, local: Local) -> Optimizer:
    """The plan's optimiser on vectors of ``layout``; the head has a learning rate of its own."""
    return _optimizer(_rates(layout, local), local)


def _optimizer(rates: Vector, local: Local) -> Optimizer:
    kind = Sgd if local.optimizer == "sgd" else AdamW
    return kind(rates, weight_decay=local.weight_decay)


def _rates(layout: Layout, local: Local) -> Vector:
    rates = np.full(layout.size, local.learning_rate, np.float32)
    for spec in layout.only(TRAINED_HEAD_PARTS).specs:
        rates[layout.slices[spec.name]] = local.head_learning_rate
    return rates


def clip(gradient: Vector, *, most: float) -> None:
    """Shorten ``gradient`` in place to an L2 norm of at most ``most``."""
    norm = math.sqrt(float(np.sum(np.square(gradient, dtype=np.float64))))
    factor = most / (norm + TINY)
    if not factor >= 1:  # also NaN, which then is everywhere
        gradient *= np.float32(factor)
