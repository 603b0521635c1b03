"""The mean of groups' means when some groups may hold attackers; the plan says how they are combined.

Each group's mean came out of a secret sum of its own, so this sees groups, never clients: the buckets of
Karimireddy, He and Jaggi (arXiv 2006.09365), in which clients that merely differ come closer to each other.

- ``geometric-median``: a group that is far from the others (more than three times the median distance to
  the coordinate-wise median) is left out; of the rest the geometric median is taken by Weiszfeld's iteration
  (Pillutla, Kakade and Harchaoui, arXiv 1912.13445), smoothed so that it never divides by zero. It stands
  whatever fewer than half of the groups send, and names the group that it leaves out.
- ``trimmed-mean``: of every coordinate the ``trim`` least and ``trim`` largest values are left out, the mean
  is of the others (Yin, Chen, Ramchandran and Bartlett, arXiv 1803.01498). Up to ``trim`` groups, whatever
  they send, leave every coordinate between two honest groups' values, while more than ``2 trim`` groups have
  not failed. With ``groups = 2 trim + 1`` it is the coordinate-wise median, until one fails.

Both stand as long as fewer than half of the groups that have not failed lie: of two groups nobody can tell
which one does, and both rules take something of each.

Neither stops attackers who stay within the spread of honest groups and push one way in every round ("a
little is enough", Baruch, Baruch and Goldberg, arXiv 1902.06156): the spread is what they get. Every sum has
the order of P-6.14.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.halving import sum_by_halves
from protocol.layout import Vector
from protocol.plan_sections import Secrecy

FAR = 3.0  # times the median distance
STEPS, SMOOTH = 64, 1e-9
Wide = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Robust:
    """``mean`` (d,) float32; per group its distance to the coordinate-wise median, and if it was kept."""

    mean: Vector
    distances: tuple[float, ...]
    kept: tuple[bool, ...]


def robust_mean(means: Sequence[Vector], counts: Sequence[int], secrecy: Secrecy) -> Robust:
    """Combine ``means`` (G of (d,)) of groups of ``counts`` clients. One group is its own mean."""
    if len(means) == 1:
        return Robust(mean=means[0], distances=(0.0,), kept=(True,))
    stacked = np.stack([mean.astype(np.float64) for mean in means])
    ordered = np.sort(stacked, axis=0)
    middle = _middle(ordered)
    distances = [math.sqrt(_square(point - middle)) for point in stacked]
    kept = [True] * len(means)
    if secrecy.combination == "trimmed-mean":
        chosen = trimmed_mean(ordered, secrecy.trim)
    else:
        limit = FAR * float(_middle(np.sort(np.array(distances))))
        kept = [distance <= limit for distance in distances]
        weights = [n for n, good in zip(counts, kept, strict=True) if good]
        chosen = geometric_median(stacked[kept], weights)
    return Robust(mean=chosen.astype(np.float32), distances=tuple(distances), kept=tuple(kept))


def trimmed_mean(ordered: Wide, trim: int) -> Wide:
    """(d,): the mean of ``ordered`` (m, d), sorted along the first axis, without ``trim`` at either end.

    Where groups have failed and too few are left, as many are trimmed as leave one or two: attackers who make
    their own group fail gain nothing by it, and an honest group's failing may give a liar a share. Groups
    count alike: who is trimmed differs by coordinate.
    """
    ends = min(trim, (len(ordered) - 1) // 2)
    left = ordered[ends : len(ordered) - ends]
    return _average(left, [1.0] * len(left))


def geometric_median(points: Wide, weights: Sequence[float]) -> Wide:
    """The point (d,) with the least weighted sum of distances to ``points`` (m, d)."""
    scale = float(np.abs(points).max(initial=0.0)) or 1.0
    least = (SMOOTH * scale) * (SMOOTH * scale)
    centre = _average(points, weights)
    for _ in range(STEPS):
        near = [math.sqrt(_square(point - centre) + least) for point in points]
        before = centre
        centre = _average(points, [weight / far for weight, far in zip(weights, near, strict=True)])
        if np.array_equal(before, centre):
            break  # as all further steps would find
    return centre


def _average(points: Wide, weights: Sequence[float]) -> Wide:
    """The weighted mean, added in the order of ``points`` (m, d)."""
    total, weight = np.zeros(points.shape[1]), 0.0
    for point, share in zip(points, weights, strict=True):
        total += point * share
        weight += share
    mean: Wide = total / weight
    return mean


def _middle(ordered: Wide) -> Wide:
    """Median along the first axis of what is sorted along it."""
    last = len(ordered) - 1
    middle: Wide = (ordered[last // 2] + ordered[(last + 1) // 2]) / 2
    return middle


def _square(values: Wide) -> float:
    """The squared norm of (d,)."""
    return float(sum_by_halves(values * values))
