"""Every figure of the report is made of counts by label: against their definitions, row by row."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import PlanError
from simulations.breakdown import by_client, by_label
from simulations.evaluation import save_evaluation
from simulations.scores import load_scores, save_scores
from simulations.tasks.classification import Scores, score

LABELS = ["a", "b", "c", "d"]


def f1_of(truth: list[int], guess: list[int], label: int) -> float:
    """From precision and recall, as textbooks have it."""
    both = sum(t == g == label for t, g in zip(truth, guess, strict=True))
    if not both:
        return 0.0
    precision, recall = both / guess.count(label), both / truth.count(label)
    return 2 * precision * recall / (precision + recall)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.lists(st.integers(0, 3), min_size=1))
def test_all_figures_follow_their_definitions(seed: int, scale: int, truth: list[int]) -> None:
    logits = np.random.default_rng(seed).normal(0, scale, (len(truth), 4)).astype(np.float32)
    scores = score(logits, np.array(truth, np.int64))
    guess = logits.argmax(axis=1).tolist()
    right = [t == g for t, g in zip(truth, guess, strict=True)]
    assert scores.accuracy == pytest.approx(sum(right) / len(truth))
    losses = [
        math.log(sum(math.exp(v - max(row)) for v in row)) + max(row) - row[t]
        for row, t in zip(logits.astype(float).tolist(), truth, strict=True)
    ]
    assert scores.mean_loss == pytest.approx(sum(losses) / len(losses), abs=1e-9)
    tested = sorted(set(truth))
    assert scores.macro_f1 == pytest.approx(np.mean([f1_of(truth, guess, t) for t in tested]))
    table = scores.by_label(LABELS)
    assert list(table) == [LABELS[t] for t in tested]
    for t in tested:
        entry = table[LABELS[t]]
        assert entry["f1"] == pytest.approx(f1_of(truth, guess, t))
        assert entry["recall"] == sum(r for r, x in zip(right, truth, strict=True) if x == t) / (
            truth.count(t)
        )
        assert (entry["precision"] is None) == (t not in guess)
    assert Scores.from_list(scores.to_list()).to_list() == scores.to_list()


def scores_of(rows: list[int], right: list[int]) -> Scores:
    return Scores(
        rows=np.array(rows),
        right=np.array(right),
        predicted=np.array(rows),
        loss=np.array(rows) * 0.5,
    )


def test_a_clients_accuracy_weighs_labels_as_its_rows_do() -> None:
    scores = scores_of([10, 10, 10, 0], [10, 5, 0, 0])
    assert scores.for_mix(LABELS, {"a": 3, "b": 1}) == pytest.approx((3 * 1.0 + 0.5) / 4)
    assert scores.for_mix(LABELS, {"c": 7, "d": 100}) == 0.0  # nobody knows how d would do
    assert scores.for_mix(LABELS, {"d": 5}) is None


def test_labels_and_clients_have_what_was_measured_and_no_more() -> None:
    together = {"federated": scores_of([4, 4, 0, 0], [4, 2, 0, 0])}
    alone = {"client-0001": scores_of([4, 4, 0, 0], [0, 4, 0, 0])}
    labels = by_label(LABELS, together, alone)
    assert set(labels) == {"a", "b"}
    assert labels["b"]["federated"]["recall"] == 0.5
    assert labels["b"]["alone"]["recall"] == 1.0
    assert "pooled" not in labels["a"]
    listed = {
        f"client-000{n}": {"value": value, "rows": 2, "labels": 1, "label_rows": {"b": 2}}
        for n, value in enumerate(("Bad", "Flur"))
    }
    clients = by_client(LABELS, together, alone, listed)
    assert clients["client-0000"] == {"value": "Bad", "rows": 2, "labels": 1, "federated": 0.5}
    assert clients["client-0001"]["alone"] == 1.0


def test_scores_are_kept_by_whose_they_are(tmp_path: Path) -> None:
    first, second = scores_of([1, 2, 0, 0], [1, 0, 0, 0]), scores_of([3, 0, 0, 0], [3, 0, 0, 0])
    save_scores(tmp_path, "federated", first)
    save_scores(tmp_path, "alone", second, "client-0003")
    together, alone = load_scores(tmp_path, "classification")
    assert together["federated"].to_list() == first.to_list()
    assert alone["client-0003"].to_list() == second.to_list()


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("later", [False, True])
def test_a_model_that_answers_with_no_numbers_ends_the_run_with_its_reason(
    tmp_path: Path, odd: float, later: bool
) -> None:
    """Whichever logit it is, and whether or not a later round was measured before."""
    save_evaluation(tmp_path, 4 if later else 2, scores_of([1, 2, 0, 0], [1, 0, 0, 0]))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for label in range(4):
        logits = np.zeros((2, 4), np.float32)
        logits[1, label] = odd
        with np.errstate(all="ignore"):
            scores = score(logits, np.array([0, 1]))
        if np.isfinite(scores.loss).all():
            assert odd == -np.inf  # of a wrong label: a probability of 0, and a loss like any other
            continue
        with pytest.raises(PlanError, match=r"round 3.*diverged.*learning_rate"):
            save_evaluation(tmp_path, 3, scores)
        with pytest.raises(PlanError, match=r"alone client-0001.*diverged"):
            save_scores(tmp_path, "alone", scores, "client-0001")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
