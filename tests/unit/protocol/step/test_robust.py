"""Groups' means: what attackers shift, and what each combination leaves of it."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.layout import Vector
from protocol.plan_sections import Secrecy
from protocol.step.robust import FAR, STEPS, geometric_median, robust_mean

MEDIAN = Secrecy()
COMBINATIONS = st.one_of(
    st.just(MEDIAN),
    st.integers(1, 5).map(lambda trim: Secrecy(combination="trimmed-mean", trim=trim)),
)


def trimmed(trim: int) -> Secrecy:
    return Secrecy(combination="trimmed-mean", trim=trim)


def means(groups: int, bad: int, boost: float, *, seed: int = 0, size: int = 200) -> np.ndarray:
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 1, size) + rng.normal(0, 0.3, (groups, size))
    honest[:bad] += boost * rng.normal(0, 1, size)
    return honest.astype(np.float32)


@pytest.mark.parametrize("secrecy", [MEDIAN, trimmed(1)])
def test_one_group_is_its_own_mean(secrecy: Secrecy) -> None:
    mean = means(1, 0, 0)[0]
    assert robust_mean([mean], [5], secrecy).mean is mean


def test_a_boosted_group_is_left_out_and_named() -> None:
    found = means(8, 2, 50.0)
    robust = robust_mean(list(found), [5] * 8, MEDIAN)
    assert robust.kept == (False, False, *[True] * 6)
    honest = found[2:].astype(np.float64).mean(axis=0)
    error = np.linalg.norm(robust.mean - honest) / np.linalg.norm(honest)
    spoilt = np.linalg.norm(found.mean(axis=0) - honest) / np.linalg.norm(honest)
    assert error < 0.1 < 5 < spoilt


def test_what_the_filter_lets_through_the_median_bounds() -> None:
    """Below half of the groups, however far: the point stays among the honest ones."""
    found = means(9, 4, 3.0)
    honest = found[4:].astype(np.float64).mean(axis=0)
    middle = geometric_median(found.astype(np.float64), np.ones(9))
    assert np.linalg.norm(middle - honest) < 0.6 * np.linalg.norm(found.mean(axis=0) - honest)


@settings(max_examples=50)
@given(COMBINATIONS, st.integers(2, 9), st.floats(-60, 60, width=32))
def test_equal_means_are_that_mean(secrecy: Secrecy, groups: int, value: float) -> None:
    same = np.array([value, 0.25, -value], np.float32)
    robust = robust_mean([same] * groups, list(range(3, 3 + groups)), secrecy)
    assert robust.kept == (True,) * groups
    assert np.allclose(robust.mean, same, rtol=1e-6)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 4), st.floats(0, 60), st.integers(0, 3))
def test_as_many_liars_as_are_trimmed_stay_within_the_honest(
    seed: int, trim: int, boost: float, extra: int
) -> None:
    """In every coordinate, whatever they send: a huge update, one that is turned round, all of one value."""
    honest = means(trim + 1 + extra, 0, 0, seed=seed, size=30)
    rng = np.random.default_rng(seed)
    lies = [boost * rng.normal(size=30), -boost * honest[0], np.full(30, boost), np.zeros(30)]
    liars = [lies[int(rng.integers(4))].astype(np.float32) for _ in range(trim)]
    mean = robust_mean([*liars, *honest], [3] * (len(honest) + trim), trimmed(trim)).mean
    assert (honest.min(axis=0) <= mean).all()
    assert (mean <= honest.max(axis=0)).all()


@settings(max_examples=40)
@given(st.integers(0, 10_000), COMBINATIONS, st.integers(5, 9), st.floats(10, 1e4))
def test_how_far_one_group_lies_makes_no_difference(
    seed: int, secrecy: Secrecy, groups: int, boost: float
) -> None:
    """Beyond the reach of the others its influence is what it is: bounded."""
    found = means(groups, 0, 0, seed=seed, size=25)
    lie = 100 * np.sign(np.random.default_rng(seed).normal(size=25)).astype(np.float32)
    counts = [4] * groups
    one, other = (
        robust_mean([far * lie, *found[1:]], counts, secrecy).mean
        for far in (np.float32(1), np.float32(boost))
    )
    assert one.tobytes() == other.tobytes()
    assert (np.abs(one) <= np.abs(found[1:]).max(axis=0)).all()


@settings(max_examples=50)
@given(st.integers(0, 10_000), COMBINATIONS, st.integers(2, 9), st.randoms())
def test_the_order_of_groups_makes_no_difference(
    seed: int, secrecy: Secrecy, groups: int, random: Random
) -> None:
    """Of the trimmed mean not in a bit; the geometric median adds groups one by one."""
    found = list(means(groups, groups // 3, 3.0, seed=seed, size=25))
    counts, order = [3 + group % 3 for group in range(groups)], list(range(groups))
    random.shuffle(order)
    one = robust_mean(found, counts, secrecy)
    other = robust_mean([found[at] for at in order], [counts[at] for at in order], secrecy)
    assert tuple(one.kept[at] for at in order) == other.kept
    if secrecy.combination == "trimmed-mean":
        assert one.mean.tobytes() == other.mean.tobytes()
    assert np.allclose(one.mean, other.mean, atol=1e-6)


@pytest.mark.parametrize(("groups", "trim"), [(3, 1), (5, 2), (7, 3), (4, 5)])
def test_a_trim_of_all_but_the_middle_is_the_median(groups: int, trim: int) -> None:
    found = means(groups, 1, 9.0)
    mean = robust_mean(list(found), [3] * groups, trimmed(trim)).mean
    assert np.allclose(mean, np.median(found, axis=0), rtol=1e-6)


def test_groups_count_alike_whatever_their_size() -> None:
    found = [np.array([value], np.float32) for value in (0.0, 1.0, 2.0, 7.0)]
    assert robust_mean(found, [3, 9, 3, 3], trimmed(1)).mean == 1.5


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.1, 10.0), st.integers(3, 9))
def test_moving_and_scaling_all_moves_and_scales_the_result(
    seed: int, scale: float, groups: int
) -> None:
    found = means(groups, 0, 0, seed=seed, size=20).astype(np.float64)
    shift = np.arange(20.0)
    weights = np.arange(1.0, groups + 1)
    one = geometric_median(found, weights) * scale + shift
    other = geometric_median(found * scale + shift, weights)
    assert np.allclose(one, other, atol=1e-4 * (1 + np.abs(shift).max()))


def by_the_book(means: list[Vector], counts: list[int]) -> tuple[list[float], list[bool]]:
    """P-6.14 with Python's floats, one operation at a time."""

    def middle(values: list[float]) -> float:
        ordered, last = sorted(values), len(values) - 1
        return (ordered[last // 2] + ordered[(last + 1) // 2]) / 2

    def squared_distance(one: list[float], other: list[float]) -> float:
        parts = [(x - y) * (x - y) for x, y in zip(one, other, strict=True)]
        while len(parts) > 1:
            tail = [parts.pop() for _ in range(len(parts) // 2)][::-1]
            for at, value in enumerate(tail):
                parts[at] += value
        return parts[0]

    def average(points: list[list[float]], weights: list[float]) -> list[float]:
        total, weight = [0.0] * len(points[0]), 0.0
        for point, share in zip(points, weights, strict=True):
            total = [t + x * share for t, x in zip(total, point, strict=True)]
            weight += share
        return [t / weight for t in total]

    points = [[float(x) for x in mean] for mean in means]
    median = [middle(list(column)) for column in zip(*points, strict=True)]
    distances = [math.sqrt(squared_distance(point, median)) for point in points]
    kept = [distance <= FAR * middle(distances) for distance in distances]
    rest = [point for point, good in zip(points, kept, strict=True) if good]
    weights = [float(n) for n, good in zip(counts, kept, strict=True) if good]
    small = 1e-9 * (max(abs(x) for point in rest for x in point) or 1.0)
    centre = average(rest, weights)
    for _ in range(STEPS):
        near = [math.sqrt(squared_distance(point, centre) + small * small) for point in rest]
        centre = average(rest, [w / far for w, far in zip(weights, near, strict=True)])
    return centre, kept


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 7), st.integers(1, 33), st.integers(0, 1))
def test_every_bit_is_that_of_the_protocols_order(
    seed: int, groups: int, size: int, bad: int
) -> None:
    found = list(means(groups, bad, 30.0, seed=seed, size=size))
    counts = [1 + (seed + group) % 5 for group in range(groups)]
    centre, kept = by_the_book(found, counts)
    robust = robust_mean(found, counts, MEDIAN)
    assert robust.kept == tuple(kept)
    assert robust.mean.tobytes() == np.array(centre).astype(np.float32).tobytes()


@pytest.mark.parametrize("secrecy", [MEDIAN, trimmed(1)])
def test_nothing_but_zeros_is_zero(secrecy: Secrecy) -> None:
    robust = robust_mean([np.zeros(3, np.float32)] * 2, [1, 2], secrecy)
    assert not robust.mean.any()
    assert robust.kept == (True, True)
