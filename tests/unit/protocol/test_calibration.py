"""Temperatures: found where a population was drawn with one, sober where rows are few."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.calibration import LEAST, MOST, calibrate, expected_error, probabilities


def drawn(temperature: float, rows: int, labels: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that come up as often as softmax(logits / temperature) says."""
    rng = np.random.default_rng(7)
    logits = 4 * rng.normal(size=(rows, labels))
    shares = probabilities(logits, temperature)
    return logits, np.array([rng.choice(labels, p=row) for row in shares])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_the_temperature_of_a_population_is_found(temperature: float) -> None:
    fit = calibrate(*drawn(temperature, 20_000))
    assert fit is not None
    assert fit.temperature == pytest.approx(temperature, rel=0.04)
    assert fit.nll_after <= fit.nll_before + 1e-6
    assert fit.ece_after < 0.02
    assert fit.ece_before >= fit.ece_after - 0.005


@given(st.floats(0.3, 5), st.floats(-50, 50), st.integers(2, 40))
def test_logits_scaled_and_shifted_scale_the_temperature(
    factor: float, shift: float, rows: int
) -> None:
    logits, labels = drawn(1.5, rows)
    one, other = calibrate(logits, labels), calibrate(factor * logits + shift, labels)
    assert one is not None
    assert other is not None
    expected = min(max(one.temperature * factor, LEAST), MOST)
    kept = {one.temperature, other.temperature} & {1.0}  # one scale is as sure as it should be
    if LEAST < one.temperature < MOST and not kept:
        assert other.temperature == pytest.approx(expected, rel=0.01, abs=2e-4)


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(2, 30), st.just(0.0) | st.floats(0.1, 40))
def test_rows_that_are_all_right_make_nobody_certain_and_nobody_doubt(
    rows: int, labels: int, margin: float
) -> None:
    """Made surer up to (rows + 1) of (rows + 2), which is what so many rows show; never made less sure."""
    right = np.arange(rows) % labels
    logits = margin * np.eye(labels)[right]
    fit = calibrate(logits, right)
    assert fit is not None
    shown = (rows + 1) / (rows + 2)
    before, after = (probabilities(logits, t).max() for t in (1.0, fit.temperature))
    assert after >= before
    assert after <= max(shown, before) + 0.01
    if margin and before < shown - 0.01 and fit.temperature > LEAST:
        assert after == pytest.approx(shown, abs=0.01)
    assert fit.ece_after <= fit.ece_before
    if before >= shown or not margin:
        assert fit.temperature == 1.0
        assert (fit.nll_after, fit.ece_after) == (fit.nll_before, fit.ece_before)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(2, 6), st.floats(0.01, 50))
def test_a_fit_is_never_worse_on_its_own_rows(
    seed: int, rows: int, labels: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    fit = calibrate(scale * rng.normal(size=(rows, labels)), rng.integers(0, labels, rows))
    assert fit is not None
    assert fit.nll_after <= fit.nll_before


@given(
    st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=1, max_size=20),
    st.integers(0, 2),
)
def test_any_finite_logits_are_fitted_within_the_bounds(
    logits: list[list[float]], label: int
) -> None:
    fit = calibrate(np.array(logits), np.full(len(logits), label))
    assert fit is not None
    assert LEAST <= fit.temperature <= MOST
    order = probabilities(np.array(logits), fit.temperature).max(-1)
    assert ((order > 0) & (order <= 1)).all()


def test_where_nothing_can_be_fitted_there_is_no_temperature() -> None:
    assert calibrate(np.zeros((0, 3)), np.zeros(0, np.int64)) is None
    assert calibrate(np.zeros((4, 1)), np.zeros(4, np.int64)) is None
    assert calibrate(np.array([[math.nan, 1.0]]), np.array([0])) is None


def test_the_error_is_what_it_is_by_hand() -> None:
    shares = np.array([[0.95, 0.05], [0.95, 0.05], [0.45, 0.55], [0.4, 0.6]])
    labels = np.array([0, 1, 1, 1])
    # 1.9 for 1 of two; .55 for one right in a bin of its own; .6 for one right.
    assert expected_error(shares, labels) == pytest.approx((0.9 + 0.45 + 0.4) / 4)
