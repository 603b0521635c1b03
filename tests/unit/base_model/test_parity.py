"""What parity accepts: undecided rows pass where rounding is all that differs, faults do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base_model.parity import Bounds, compare
from protocol.peft_format import ParityError
from protocol.plan import Plan, plan_from

BOUND = 1e-4
DERIVED = Bounds(relative=BOUND)


def binary(rows: int, seed: int) -> np.ndarray:
    """Logits of a binary run: most rows decided, the first as undecided as the issue's."""
    logits = np.random.default_rng(seed).normal(0, 3, (rows, 2))
    logits[0] = -0.009, 0.002
    return logits.astype(np.float32)


def test_an_undecided_row_of_a_binary_run_passes() -> None:
    logits = binary(200, 0)
    parity = compare(logits, logits + np.float32(1e-6), DERIVED)
    own = 1e-6 / 0.009
    assert own > BOUND  # relative to the row alone it would fail
    assert parity.max_relative <= BOUND
    assert parity.absolute == pytest.approx(BOUND * np.median(np.abs(logits).max(-1)))


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(20, 60),
    labels=st.integers(2, 8),
    scale=st.floats(1e-3, 1e3),
    undecided=st.floats(0, 1e-2),
    noise=st.floats(0, 1e-5),
)
def test_rounding_passes_however_undecided_rows_are(
    seed: int, rows: int, labels: int, scale: float, undecided: float, noise: float
) -> None:
    """Errors go with the scale of all rows, as rounding's do."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (rows, labels))
    logits[: rows // 4] *= undecided
    answers = logits + rng.uniform(-1, 1, logits.shape) * noise * scale
    assert compare(logits, answers, DERIVED).max_relative <= BOUND


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32), row=st.integers(0, 19), scale=st.floats(1e-3, 1e3))
def test_one_wrong_row_fails_decided_or_not(seed: int, row: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (20, 3))
    logits[::2] *= 1e-3
    answers = logits.copy()
    answers[row] += 0.01 * scale
    assert compare(logits, answers, DERIVED).max_relative > BOUND


def test_decided_rows_are_measured_by_themselves_and_honest_figures_stay() -> None:
    """Without rows below the scale the figure is that of before: relative to the row."""
    logits = np.array([[1.0, -4.0], [3.0, 4.0]])
    answers = logits + np.array([[0.0, 4e-5], [0.0, 0.0]])
    assert compare(logits, answers, DERIVED).max_relative == pytest.approx(1e-5)


@pytest.mark.parametrize("huge", [1e2, 1e6, 1e12])
@pytest.mark.parametrize("rows", [1, 60])
def test_a_few_huge_rows_excuse_no_other(huge: float, rows: int) -> None:
    logits = np.random.default_rng(0).normal(size=(200, 2))
    logits[:rows] = huge, -huge
    swapped = logits[:, ::-1].copy()
    swapped[:rows] = logits[:rows]
    assert compare(logits, swapped, DERIVED).max_relative > BOUND
    assert compare(logits, logits + 1e-6, DERIVED).max_relative <= BOUND


def test_a_turned_label_counts_by_its_margin() -> None:
    """By a floor of the plan's own a row may move; what it decided clearly stays."""
    floor = Bounds(relative=BOUND, absolute=0.1)
    logits = np.array([[1.0, 0.85, -1.0], [3.0, 0.0, 0.0]])
    moved, turned = logits.copy(), logits.copy()
    moved[0] = 0.93, 0.92, -1.0
    turned[0] = 0.92, 0.93, -1.0
    assert compare(logits, moved, floor).max_relative <= BOUND
    parity = compare(logits, turned, floor)
    assert (parity.label_agreement, parity.absolute) == (0.5, 0.1)
    assert parity.max_relative == pytest.approx(0.15 / 1000)
    logits[0, 1] = turned[0, 1] = 0.99  # undecided by less than the floor
    assert compare(logits, turned, floor).max_relative <= BOUND


def test_a_floor_of_the_plans_own() -> None:
    logits = binary(20, 1)
    answers = logits.copy()
    answers[0] += 2e-3
    assert compare(logits, answers, DERIVED).max_relative > BOUND
    wide = compare(logits, answers, Bounds(relative=BOUND, absolute=5e-3))
    assert wide.max_relative <= BOUND
    assert wide.absolute == 5e-3
    narrow = compare(logits, logits + 1e-6, Bounds(relative=BOUND, absolute=1e-9))
    assert narrow.max_relative > BOUND


@pytest.mark.parametrize("odd", [np.nan, np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_no_number_is_refused(odd: float, side: int) -> None:
    sides = [binary(5, 2), binary(5, 2)]
    sides[side][3, 1] = odd
    with pytest.raises(ParityError, match="NaN or infinite"):
        compare(*sides, DERIVED)


def test_rows_without_any_logit_are_equal() -> None:
    zeros = np.zeros((3, 2))
    assert compare(zeros, zeros, DERIVED).max_relative == 0
    assert compare(zeros, zeros + 1e-6, DERIVED).max_relative > BOUND


def test_a_note_meets_the_bounds_of_its_plan_and_no_others() -> None:
    def plan(**release: float) -> Plan:
        base = {"fingerprint": "0" * 64}
        document = {"name": "t", "base": base, "task": {"labels": ["a", "b"]}, "release": release}
        return plan_from(document, source="test")

    logits = binary(20, 3)
    derived = compare(logits, logits + 1e-6, DERIVED)
    assert derived.meets(plan())
    assert not derived.meets(plan(parity_max_relative=1e-3))
    assert not derived.meets(plan(parity_max_absolute=1e-3))
    own = compare(logits, logits + 1e-6, Bounds(relative=BOUND, absolute=1e-3))
    assert own.meets(plan(parity_max_absolute=1e-3))
    assert not compare(logits, logits + 1, DERIVED).meets(plan())
