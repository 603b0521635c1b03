from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import PlanError
from protocol.rows.read import Table
from simulations.experiment import Experiment
from simulations.own_rows import OwnRows, load_own_rows, own_rows, save_own_rows
from simulations.personal import means
from simulations.tasks import classification, regression

TASKS: dict[str, dict[str, Any]] = {
    "classification": {},
    "regression": {"kind": "regression", "low": 0, "high": 1},
    "causal-lm": {"kind": "causal-lm", "form": "text"},
}


def own(
    train: Table, test: Table, parts: list[list[int]], kind: str = "classification", **keys: Any
) -> OwnRows:
    experiment = Experiment(
        name="t",
        base={"folder": "b"},  # type: ignore[arg-type]
        data={"train": "a.jsonl", "test": "b.jsonl"},  # type: ignore[arg-type]
        population={"clients": len(parts), **keys},  # type: ignore[arg-type]
        plan={"rounds": 1, "rule": {"name": "mean"}, "task": TASKS[kind]},
    )
    plan = experiment.plan_for(fingerprint="0" * 64, labels=["a", "b", "c"])
    return own_rows(experiment, plan, (train, test), parts)


def table(targets: list[Any], groups: list[str] | None = None) -> Table:
    return Table(texts=["t"] * len(targets), targets=targets, groups=groups or [])


def test_a_device_has_all_test_rows_with_one_of_its_labels_weighed_by_its_mix() -> None:
    found = own(table([*"aaab", "c"]), table([*"abcab"]), [[0, 1, 2, 3], [4]])
    assert (found.by, found.rows) == (
        "labels",
        {"client-0000": [0, 1, 3, 4], "client-0001": [2]},
    )
    logits = np.array([[9, 0, 0], [9, 0, 0], [9, 0, 0], [9, 0, 0]], np.float32)
    scores = classification.score(logits, np.array([0, 1, 0, 1]))
    assert scores.quality == 0.5
    assert found.quality(scores, ["a", "b", "c"], {"a": 3, "b": 1}) == 0.75


def test_a_device_whose_labels_nobody_tests_has_no_rows() -> None:
    found = own(table([*"ab"]), table([*"aa"]), [[0], [1]])
    assert [found.has(f"client-000{number}") for number in (0, 1, 2)] == [True, False, False]


@pytest.mark.parametrize("kind", list(TASKS))
def test_rows_that_name_their_device_are_its_own_whatever_is_learnt(kind: str) -> None:
    train, test = (
        table([0.5] * 4, ["x", "y", "y", "z"]),
        table([0.5] * 4, ["y", "x", "y", "strange"]),
    )
    found = own(train, test, [[1, 2], [0], [3]], kind, partition="column", column="who")
    rows = {"client-0000": [0, 2], "client-0001": [1], "client-0002": []}
    assert (found.by, found.rows) == ("column", rows)
    assert not found.has("client-0002")
    logits = np.eye(3, dtype=np.float32)
    scores = classification.score(logits, np.array([0, 1, 0]))
    assert found.quality(scores, ["a", "b", "c"], {"a": 99}) == scores.quality


def test_texts_of_named_devices_and_test_rows_of_nobody_are_refused() -> None:
    train, test = table(["t", "t"], ["x", "y"]), table(["t"])
    with pytest.raises(PlanError, match="do not say whose they are"):
        own(train, test, [[0], [1]], "causal-lm", partition="column", column="who")


@pytest.mark.parametrize(
    ("kind", "partition"), [("classification", "iid"), ("causal-lm", "shards")]
)
def test_where_chance_alone_sets_devices_apart_all_rows_are_everybodys(
    kind: str, partition: str
) -> None:
    found = own(table([*"aab"]), table([*"ab"]), [[0, 2], [1]], kind, partition=partition)
    assert found.by == "all"
    assert (found.of("client-0001"), found.count("client-0001", 2)) == (None, 2)


@given(st.data())
def test_numbers_are_drawn_as_a_device_has_them(data: st.DataObject) -> None:
    """Of every tenth of the values as large a share as among its own rows, to one row."""
    number = st.floats(0, 1)
    train = table(data.draw(st.lists(number, min_size=4, max_size=60)))
    test = table(data.draw(st.lists(number, min_size=4, max_size=60)))
    half = len(train) // 2
    parts = [list(range(half)), list(range(half, len(train)))]
    found = own(train, test, parts, "regression")
    assert found == own(train, test, parts, "regression")
    assert found.by == "values"
    strata = regression.strata([*train.targets, *test.targets])
    tested = strata[len(train) :]
    for part, rows in zip(parts, found.rows.values(), strict=True):
        assert rows == sorted(set(rows))
        mix = Counter(s for s in (strata[row] for row in part) if s in tested)
        drawn = Counter(tested[row] for row in rows)
        assert drawn.keys() == mix.keys()
        for stratum, count in mix.items():
            share = len(rows) * count / mix.total()
            assert abs(drawn[stratum] - share) <= 1 + len(mix) * count / mix.total()


def test_they_are_kept_in_the_runs_folder(tmp_path: Path) -> None:
    found = OwnRows(by="values", rows={"client-0000": [2, 5]})
    save_own_rows(tmp_path, found)
    assert load_own_rows(tmp_path) == found
    assert not load_own_rows(tmp_path / "another").has("client-0000")


def test_devices_alone_have_a_mean_only_where_all_were_trained_alone() -> None:
    both = {"federated": 0.5, "personal": 0.7}
    assert means({"a": both, "b": both | {"alone": 0.2}}) == pytest.approx(both)
    alone = means({"a": both | {"alone": 0.4}, "b": both | {"alone": 0.2}})["alone"]
    assert alone == pytest.approx(0.3)
    assert means({}) == {}
