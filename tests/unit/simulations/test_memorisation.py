"""How much of planted secrets and of its rows an adapter gives away: the measures, and what is planted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from protocol.errors import PlanError
from protocol.plan import Plan, plan_from
from protocol.rows.read import Table
from simulations.canaries import DIGITS, canary, planted
from simulations.experiment import load_experiment
from simulations.memorisation import area_under_curve, exposure, metrics_of

LOSSES = st.lists(st.floats(0, 100), min_size=2, max_size=60)


def plan_of(form: str, seed: int = 1) -> Plan:
    task = {"kind": "causal-lm", "form": form}
    return plan_from(
        {"name": "t", "seed": seed, "base": {"fingerprint": "0" * 64}, "task": task}, source="test"
    )


@given(LOSSES)
def test_exposure_is_what_the_rank_leaves_of_all_bits(losses: list[float]) -> None:
    bits = exposure(np.array(losses))
    rank = 1 + sum(x < losses[0] for x in losses) + (losses.count(losses[0]) - 1) / 2
    assert bits == pytest.approx(math.log2(len(losses) / rank))
    assert 0 <= bits <= math.log2(len(losses))


def test_the_likeliest_secret_is_exposed_whole_and_the_last_not_at_all() -> None:
    assert exposure(np.array([0.0, *range(1, 256)])) == 8.0
    assert exposure(np.array([300.0, *range(1, 256)])) == 0.0


def test_secrets_that_cannot_be_told_apart_were_not_learnt() -> None:
    assert exposure(np.zeros(256)) == pytest.approx(1.0, abs=0.01)


@given(LOSSES, LOSSES)
def test_the_area_is_that_of_scikit_learn(members: list[float], others: list[float]) -> None:
    area = area_under_curve(np.array(members), np.array(others))
    labels = [1] * len(members) + [0] * len(others)
    assert area == pytest.approx(roc_auc_score(labels, [*members, *others]))


@pytest.mark.parametrize("form", ["text", "messages", "prompt"])
def test_secrets_stand_with_the_first_device_as_rows_of_the_plan(form: str) -> None:
    plan = plan_of(form)
    rows = Table(texts=["a", "b", "c"], targets=["", "", ""], groups=["x", "x", "y"])
    more, parts = planted(plan, rows, [[0, 1], [2]], count=2, repeats=3)
    assert parts == [[0, 1, 3, 4, 5, 6, 7, 8], [2]]
    assert more.groups[3:] == ["x"] * 6
    first, answer = canary(plan, 0, 0)
    assert more.texts[3:6] == [first] * 3
    assert more.texts[6] != first
    line = plan.task.line(first, answer)
    text = str(line)
    assert len([letter for letter in text if letter.isdecimal()]) == DIGITS + 1


def test_secrets_follow_from_the_seed_and_differ_from_what_they_are_compared_with() -> None:
    drawn = {canary(plan_of("text"), 0, which)[0] for which in range(256)}
    assert len(drawn) == 256
    assert canary(plan_of("text"), 0, 0) == canary(plan_of("text"), 0, 0)
    assert canary(plan_of("text", seed=2), 0, 0) != canary(plan_of("text"), 0, 0)


def test_nothing_is_planted_unless_it_is_asked_for() -> None:
    rows = Table(texts=["a"], targets=[""])
    assert planted(plan_of("text"), rows, [[0]], count=0, repeats=1) == (rows, [[0]])
    assert metrics_of(None) == {}
    assert metrics_of({"exposure": 1.0, "exposures": [1.0]}) == {"exposure": 1.0}


def test_labels_have_no_secrets(tmp_path: Path) -> None:
    changes: list[Any] = ["memorisation.canaries=1"]
    with pytest.raises(PlanError, match="`memorisation` is for text that follows text"):
        load_experiment(Path("simulations/experiments/demo.toml"), changes)
