"""Groups' means: what attackers shift, and what the filter and the geometric median leave of it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.step.robust import geometric_median, robust_mean


def means(groups: int, bad: int, boost: float, *, seed: int = 0, size: int = 200) -> np.ndarray:
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 1, size) + rng.normal(0, 0.3, (groups, size))
    honest[:bad] += boost * rng.normal(0, 1, size)
    return honest.astype(np.float32)


def test_one_group_is_its_own_mean() -> None:
    mean = means(1, 0, 0)[0]
    assert robust_mean([mean], [5]).mean is mean


def test_a_boosted_group_is_left_out_and_named() -> None:
    found = means(8, 2, 50.0)
    robust = robust_mean(list(found), [5] * 8)
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


def test_equal_means_are_that_mean() -> None:
    same = np.full(7, 0.25, np.float32)
    robust = robust_mean([same] * 4, [3, 3, 4, 4])
    assert robust.kept == (True,) * 4
    assert np.allclose(robust.mean, same)


@settings(max_examples=30, deadline=None)
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
