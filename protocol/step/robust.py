"""The mean of groups' means when some groups may hold attackers: a filter, then a geometric median.

Each group's mean came out of a secret sum of its own, so this sees groups, never clients. A group that
is far from the others (more than three times the median distance to the coordinate-wise median) is
left out; of the rest the geometric median is taken by Weiszfeld's iteration (Pillutla et al., arXiv
1912.13445), smoothed so that it never divides by zero. (P-6.14)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.layout import Vector

FAR = 3.0  # times the median distance
STEPS, SMOOTH = 64, 1e-9
Wide = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Robust:
    """``mean`` (d,) float32; per group its distance to the coordinate-wise median, and if it was kept."""

    mean: Vector
    distances: tuple[float, ...]
    kept: tuple[bool, ...]


def robust_mean(means: Sequence[Vector], counts: Sequence[int]) -> Robust:
    """Combine ``means`` (G of (d,)) of groups of ``counts`` clients. One group is its own mean."""
    stacked = np.stack([mean.astype(np.float64) for mean in means])
    if len(means) == 1:
        return Robust(mean=means[0], distances=(0.0,), kept=(True,))
    distances = np.linalg.norm(stacked - np.median(stacked, axis=0), axis=1)
    limit = FAR * float(np.median(distances))
    kept = distances <= limit if limit > 0 else distances <= 0
    chosen = geometric_median(stacked[kept], np.asarray(counts, np.float64)[kept])
    return Robust(
        mean=chosen.astype(np.float32),
        distances=tuple(float(value) for value in distances),
        kept=tuple(bool(value) for value in kept),
    )


def geometric_median(points: Wide, weights: Wide) -> Wide:
    """The point (d,) with the least weighted sum of distances to ``points`` (m, d)."""
    scale = float(np.abs(points).max(initial=0.0)) or 1.0
    centre: Wide = np.average(points, axis=0, weights=weights)
    for _ in range(STEPS):
        near = np.sqrt(np.sum((points - centre) ** 2, axis=1) + (SMOOTH * scale) ** 2)
        centre = np.average(points, axis=0, weights=weights / near)
    return centre
