"""Partitions: what each scheme is for."""

import numpy as np
import pytest

from protocol.errors import PlanError
from simulations.partitions import by_column, dirichlet, iid, shards

LABELS = [str(row % 10) for row in range(1000)]


def labels_per_client(parts: list[list[int]]) -> float:
    return float(np.mean([len({LABELS[row] for row in part}) for part in parts]))


def test_iid_sizes_differ_by_at_most_one() -> None:
    sizes = {len(part) for part in iid(1003, 20, seed=0)}
    assert sizes == {50, 51}


def test_small_alpha_means_few_labels_per_client() -> None:
    skewed = labels_per_client(dirichlet(LABELS, 20, alpha=0.01, seed=0))
    mild = labels_per_client(dirichlet(LABELS, 20, alpha=0.5, seed=0))
    even = labels_per_client(dirichlet(LABELS, 20, alpha=100.0, seed=0))
    assert skewed < 2.5 < mild < 9 < even


def test_nobody_is_left_with_too_few_rows() -> None:
    parts = dirichlet(LABELS, 40, alpha=0.01, seed=3, min_rows=4)
    assert min(len(part) for part in parts) >= 4


def test_shards_give_few_labels() -> None:
    parts = shards(LABELS, 10, per_client=2, seed=0)
    assert {len(part) for part in parts} == {100}
    assert labels_per_client(parts) <= 2


def test_a_column_keeps_a_value_together() -> None:
    values = [f"d{row % 7}" for row in range(70)]
    parts = by_column(values, 7)
    assert [{values[row] for row in part} for part in parts] == [{f"d{i}"} for i in range(7)]


def test_the_largest_value_comes_first() -> None:
    values = ["b"] * 30 + ["a"] * 25 + ["c"] * 50
    assert [len(part) for part in by_column(values, 3)] == [50, 30, 25]


@pytest.mark.parametrize(
    "impossible",
    [
        lambda: iid(9, 10, seed=0),
        lambda: dirichlet(LABELS, 1001, alpha=1.0, seed=0),
        lambda: by_column(["a", "b"], 3),
        lambda: by_column(["a", "b", "c"], 2),
        lambda: by_column(["a", "a", "b"], 2, min_rows=2),
        lambda: shards(LABELS, 600, per_client=2, seed=0),
    ],
)
def test_what_cannot_be_done_is_said(impossible: object) -> None:
    with pytest.raises(PlanError) as caught:
        impossible()  # type: ignore[operator]
    assert caught.value.remedy
