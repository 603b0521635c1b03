"""Noise on images, and the way back: what sites train on and devices draw with is computed here. (P-1.18)

A schedule says how much is left of an image at each step: ``alphas[t]``, the share of its variance. At step t
an image x is ``sqrt(alphas[t]) x + sqrt(1 - alphas[t]) e``, e being standard normal (DDPM, arXiv 2006.11239);
a denoiser is asked for e. Shares are float64, images float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from protocol.draws import normal, uniform
from protocol.encoding import seed_from
from protocol.manifest import Record

MOST_STEPS = 10_000
LARGEST_BETA = 0.999  # of squaredcos_cap_v2
LEAST_SHARE = 2.0**-200  # what is left of an image at last: its root divides, in float32
PAIRS = 4  # of a step and a noise, that a row is measured by
Shares = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]  # (rows, channels, height, width)
Steps = npt.NDArray[np.int64]
Shape = tuple[int, ...]  # (channels, height, width)
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class Schedule(Record):
    """How noise grows: the variances that single steps add, ``betas``, as diffusers' schedulers name them.

    ``start`` and ``end``: the first and the last of them; squaredcos_cap_v2 has none of its own.
    """

    steps: Annotated[int, Field(ge=2, le=MOST_STEPS)]
    betas: Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
    start: Share | None
    end: Share | None

    @model_validator(mode="after")
    def _bounds_where_they_count(self) -> Schedule:
        said = (self.start is not None, self.end is not None)
        if said != (self.betas != "squaredcos_cap_v2",) * 2:
            raise ValueError(f"betas `{self.betas}` and their bounds do not go together")
        if self.start is not None and self.end is not None and self.start > self.end:
            raise ValueError("noise grows: start is above end")
        if self.alphas()[-1] < LEAST_SHARE:
            raise ValueError("noise grows until nothing is left of an image")
        return self

    def alphas(self) -> Shares:
        """(steps,): the share of an image's variance that is left at each step, falling."""
        return _alphas(self)


@lru_cache(maxsize=8)
def _alphas(schedule: Schedule) -> Shares:
    shares: Shares = np.asarray(np.cumprod(1.0 - _betas(schedule)), np.float64)
    shares.flags.writeable = False
    return shares


def _betas(schedule: Schedule) -> Shares:
    steps = schedule.steps
    if schedule.start is None or schedule.end is None:
        ends = [_cosine(step / steps) for step in range(steps + 1)]
        falls = (1 - after / before for before, after in pairwise(ends))
        return np.array([min(fall, LARGEST_BETA) for fall in falls])
    if schedule.betas == "scaled_linear":
        return np.linspace(math.sqrt(schedule.start), math.sqrt(schedule.end), steps) ** 2
    return np.linspace(schedule.start, schedule.end, steps)


def _cosine(share: float) -> float:
    """Of arXiv 2102.09672, equation 17."""
    return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2


def noisy(images: Images, noise: Images, steps: Steps, schedule: Schedule) -> Images:
    """``images`` as they are at ``steps`` (rows,), under standard normal ``noise`` of their shape."""
    left = schedule.alphas()[steps][:, None, None, None]
    result: Images = np.sqrt(left).astype(np.float32) * images
    result += np.sqrt(1 - left).astype(np.float32) * noise
    return result


@dataclass(frozen=True, kw_only=True)
class Draws:
    """A step (rows,) int64 and a noise (rows, channels, height, width) float32 for each of some images."""

    steps: Steps
    noise: Images


def training_draws(
    seed: int, rows: npt.NDArray[np.int64], schedule: Schedule, shape: Shape
) -> Draws:
    """For the rows of these numbers: each by a stream of its own, in whatever pieces they are computed.

    Steps are uniform over the schedule. ``seed``: of one optimiser step.
    """
    draws = _empty(len(rows), shape)
    for at, row in enumerate(rows.tolist()):
        generator = np.random.default_rng(seed_from("noise", seed, row))
        draws.steps[at] = generator.integers(schedule.steps)
        draws.noise[at] = generator.standard_normal(shape, np.float32)
    return draws


def measuring_draws(places: npt.NDArray[np.int64], schedule: Schedule, shape: Shape) -> Draws:
    """For ever the same, :data:`PAIRS` for each row: place ``PAIRS * row + pair`` is the ``pair``-th of them.

    Its step is of the ``pair``-th of as many equal parts of the schedule, so that every row is seen under
    little noise and much. Both are of :mod:`protocol.draws`, which no version of a library changes.
    """
    draws = _empty(len(places), shape)
    for at, place in enumerate(places.tolist()):
        share = (1 + float(uniform(seed_from("measured-step", place), (1,))[0])) / 2
        draws.steps[at] = int(schedule.steps * (place % PAIRS + share) / PAIRS)
        draws.noise[at] = normal(seed_from("measured-noise", place), shape)
    return draws


def _empty(rows: int, shape: Shape) -> Draws:
    return Draws(steps=np.empty(rows, np.int64), noise=np.empty((rows, *shape), np.float32))


def steps_down(schedule: Schedule, count: int) -> Steps:
    """``count`` steps from the last one on, evenly apart, falling: ``round(T - i T / count) - 1``."""
    at = np.arange(count, dtype=np.float64)
    return np.round(schedule.steps - at * schedule.steps / count).astype(np.int64) - 1


def step_back(images: Images, noise: Images, step: int, before: int, schedule: Schedule) -> Images:
    """``images`` of a step as they are at the one ``before``, -1 being none at all: DDIM with eta 0.

    What they would be without noise is cut to -1..1, which is what images are. (arXiv 2010.02502, eq. 12)
    """
    shares = schedule.alphas()
    here, there = float(shares[step]), 1.0 if before < 0 else float(shares[before])
    clean = (images - np.float32(math.sqrt(1 - here)) * noise) / np.float32(math.sqrt(here))
    kept, added = np.float32(math.sqrt(there)), np.float32(math.sqrt(1 - there))
    result: Images = np.asarray(kept * np.clip(clean, -1.0, 1.0) + added * noise, np.float32)
    return result
