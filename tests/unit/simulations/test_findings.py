"""What an experiment's rows have to be warned of, before a run is spent on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocol.rows.read import Table
from simulations.experiment import Experiment
from simulations.experiment_measures import Yardsticks
from simulations.findings import finding_of, findings_of
from simulations.pace import Outlook, Pace, Work, forecast_parts


def experiment(**plan: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "x",
            "base": {"source": "s"},
            "data": {"train": "a.jsonl", "test": "b.jsonl"},
            "population": {"clients": 40},
            "plan": {"rounds": 2, "cohort": {"size": 10, "quorum": 8}} | plan,
        }
    )


def warned(found: Experiment, train: list[str], test: list[str]) -> dict[str, str]:
    rows = tuple(Table(texts=["t"] * len(labels), targets=labels) for labels in (train, test))
    plan = found.plan_for(fingerprint="0" * 64, labels=sorted({*train, *test}))
    findings = findings_of(found, plan, None, (rows[0], rows[1]))
    return {f.field: f.cause for f in findings if f.severity == "warning"}


def test_labels_of_the_test_alone_are_named() -> None:
    said = warned(experiment(), ["a", "b"], ["a", "tipo", "tipo", "zz"])
    assert "'tipo', 'zz' stand in the test rows only (75.0% of them)" in said["data.test"]
    assert "data.test" not in warned(experiment(), ["a", "b"], ["a"])


def test_labels_of_no_row_are_named() -> None:
    listed = experiment(task={"labels": ["a", "b", "nobody"]})
    assert "'nobody' stands in the list" in warned(listed, ["a", "b"], ["a"])["plan.task.labels"]


def test_clients_that_are_never_asked_are_counted() -> None:
    assert "ask 20 of 40 clients" in warned(experiment(), ["a", "b"], ["a"])["plan.cohort.size"]
    assert "plan.cohort.size" not in warned(experiment(rounds=4), ["a", "b"], ["a"])


def test_a_share_that_a_round_does_not_ask_is_named() -> None:
    """An experiment knows how many clients there are, which a plan does not."""
    other = warned(experiment(local={"scaffold": 1.0}), ["a", "b"], ["a"])
    assert "a round asks 0.25 of all clients" in other["plan.local.scaffold"]
    for right in ({"scaffold": 0.25}, {}):
        assert "plan.local.scaffold" not in warned(experiment(local=right), ["a", "b"], ["a"])


def test_shares_are_of_the_clients_that_a_plan_names() -> None:
    cohort = {"size": 10, "quorum": 8, "clients": [f"client-{n:04d}" for n in range(20)]}
    said = warned(experiment(local={"scaffold": 0.25}, cohort=cohort), ["a", "b"], ["a"])
    assert "a round asks 0.5 of all clients" in said["plan.local.scaffold"]
    assert "plan.cohort.size" not in said  # 20 are asked, of 20


def test_a_finding_survives_the_run_folder() -> None:
    found = experiment()
    plan = found.plan_for(fingerprint="0" * 64, labels=["a", "b"])
    rows = Table(texts=["t"], targets=["a"]), Table(texts=["t"], targets=["b"])
    for finding in findings_of(found, plan, None, rows):
        stored = {k: getattr(finding, k) for k in ("severity", "field", "cause", "remedy")}
        assert finding_of(stored) == finding


def test_a_forecast_is_steps_times_their_time() -> None:
    plan = experiment(local={"batch_size": 4}).plan_for(fingerprint="0" * 64, labels=["a", "b"])
    work = Work(clients=[8, 9, 4, 3], test_rows=100, yardsticks=Yardsticks(alone=0))
    parts = forecast_parts(plan, Pace(step=2.0, row=0.01), work)
    assert parts["federated"] == 2 * 10 / 4 * (2 + 3 + 1 + 1) * 2.0
    assert parts["evaluation"] == 2 * 100 * 0.01
    assert parts["pooled"] == 5 * 24 / 4 * 2.0 + 1.0
    assert parts["alone"] == 0
    assert parts["personal"] == 0
    three = replace(work, own_rows=[10, 20], yardsticks=Yardsticks(alone=1, personal=2))
    parts = forecast_parts(plan, Pace(step=2.0, row=0.01), three)
    assert parts["personal"] == pytest.approx(2 * 4 * 2.0 + 3 * 30 * 0.01)
    assert parts["alone"] == pytest.approx(2 * (5 * 6 / 4 * 2.0 + 1.0))
    bound = experiment(local={"batch_size": 4, "max_steps": 1}, rounds=4)
    plan = bound.plan_for(fingerprint="0" * 64, labels=["a", "b"])
    assert forecast_parts(plan, Pace(step=2.0, row=0.0), work)["federated"] == 4 * 10 / 4 * 4 * 2.0


def test_the_time_left_follows_the_rounds_that_are_through() -> None:
    plan = experiment(rounds=4).plan_for(fingerprint="0" * 64, labels=["a", "b"])
    outlook = Outlook(plan, {"federated": 40.0, "evaluation": 4.0, "pooled": 100.0})
    assert outlook.left(0) == 40 + 4 + 100
    line = outlook.round(1, 60.0, (0.9153, 0.25))
    assert line == "round 1 of 4: accuracy 91.5%, loss 0.250; 60 s, about 5 min left"
    assert outlook.left(1) == 3 * 60 + 3 + 100
    assert "not measured" in outlook.round(2, 20.0, None)
    assert outlook.left(2) == 2 * 40 + 2 + 100
