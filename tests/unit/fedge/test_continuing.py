"""``fedge plan continue``: the next plan, from a run that has rounds."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedge.continuing import next_name
from fedge.plans import app
from operations.coordinator import make_coordinator
from operations.running import order
from protocol.errors import ArtefactError, PlanError
from protocol.plan import Plan, plan_from_text
from tests.unit.audit.runs import go_on, make_run

THREE = {"size": 3, "quorum": 3, "deadline_s": 30.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds in secret, of labels with odd letters. Not to be changed."""
    folder = tmp_path_factory.mktemp("continuing")
    labels = {"labels": [r'ä "b" \n', "b", "c"]}
    return make_run(folder / "run", count=3, cohort=THREE, task=labels)


def written(run: Path, out: Path, *more: str) -> Plan:
    result = CliRunner().invoke(app, ["continue", str(run), "--out", str(out), *more])
    assert result.exit_code == 0, result.output
    return plan_from_text(out.read_text(), source=str(out))


def test_all_but_name_rounds_and_start_is_as_before(run: Path, tmp_path: Path) -> None:
    plan = written(run, tmp_path / "plan.toml", "--rounds", "5")
    before = plan_from_text((run / "plan.json").read_text(), source="plan.json")
    assert plan.start is not None
    assert (plan.name, plan.rounds, plan.start.round) == ("small-2", 5, 2)
    assert plan.start.plans == [before.digest]
    same = {"name": before.name, "rounds": before.rounds, "start": None}
    assert plan.model_copy(update=same).digest == before.digest


def test_a_round_is_named_by_its_adapter(run: Path, tmp_path: Path) -> None:
    plan = written(run / "rounds/0001/adapter", tmp_path / "p.toml", "--rounds", "1", "--name", "x")
    assert plan.start is not None
    assert (plan.start.round, plan.name) == (1, "x")


def test_it_is_said_in_json_too(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.toml"
    asked = ["continue", str(run), "--rounds", "1", "--out", str(out), "--json"]
    said = json.loads(CliRunner().invoke(app, asked).output)
    assert said["legal"]
    assert said["start"]["round"] == 2
    assert said["digest"] == plan_from_text(out.read_text(), source="plan.toml").digest


def test_from_round_0_it_begins_anew_with_another_seed(run: Path, tmp_path: Path) -> None:
    plan = written(run / "rounds/0000/adapter", tmp_path / "p.toml", "--rounds", "2")
    before = plan_from_text((run / "plan.json").read_text(), source="plan.json")
    assert (plan.start, plan.seed) == (None, before.seed + 1)
    same = {"name": before.name, "seed": before.seed}
    assert plan.model_copy(update=same).digest == before.digest
    named = written(run / "rounds/0000", tmp_path / "q.toml", "--rounds", "2", "--seed", "77")
    assert named.seed == 77
    asked = ["continue", str(run / "rounds/0000"), "--rounds", "2", "--seed", str(before.seed)]
    same_seed = CliRunner().invoke(app, [*asked, "--out", str(tmp_path / "r.toml")])
    assert "round 0 is the earlier run's" in " ".join(same_seed.output.split())


def test_a_method_that_begins_alike_for_every_seed_is_warned_of(tmp_path: Path) -> None:
    alike = {"task": {"kind": "causal-lm"}, "adapter": {"method": "ia3", "targets": ["query"]}}
    run = make_run(tmp_path / "run", count=3, cohort=THREE, rounds=1, **alike)
    asked = ["continue", str(run / "rounds/0000"), "--rounds", "2", "--json"]
    said = json.loads(CliRunner().invoke(app, [*asked, "--out", str(tmp_path / "p.toml")]).output)
    assert [f["field"] for f in said["findings"] if f["severity"] == "warning"][-1] == "seed"


def test_from_round_0_of_a_run_that_went_on_it_goes_on_from_there(
    run: Path, tmp_path: Path
) -> None:
    labels = {"labels": [r'ä "b" \n', "b", "c"]}
    second = go_on(run, tmp_path / "second", count=3, cohort=THREE, rounds=1, task=labels)
    plan = written(second / "rounds/0000", tmp_path / "p.toml", "--rounds", "2")
    again = plan_from_text((second / "plan.json").read_text(), source="plan.json")
    assert plan.start == again.start
    assert plan.seed == again.seed
    result = CliRunner().invoke(
        app,
        ["continue", str(second / "rounds/0000"), "--rounds", "2", "--out", str(tmp_path / "q")],
    )
    assert "goes on from round 2 of fedge/small/" in result.output
    assert "--start RUN/rounds/0002/adapter" in " ".join(result.output.split())


def test_what_is_no_run_or_there_already_is_refused(run: Path, tmp_path: Path) -> None:
    asked = ["continue", str(tmp_path), "--rounds", "1", "--out", str(tmp_path / "plan.toml")]
    assert isinstance(CliRunner().invoke(app, asked).exception, ArtefactError)
    (tmp_path / "plan.toml").write_text("mine")
    asked[1] = str(run)
    assert isinstance(CliRunner().invoke(app, asked).exception, ArtefactError)
    assert (tmp_path / "plan.toml").read_text() == "mine"


def test_a_budget_that_is_spent_is_said_and_the_plan_is_there_to_be_changed(
    tmp_path: Path,
) -> None:
    noise = {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 5.0}
    run = make_run(
        tmp_path / "run", count=3, cohort=THREE, rounds=1, privacy=noise, rule={"name": "first"}
    )
    out = tmp_path / "plan.toml"
    result = CliRunner().invoke(app, ["continue", str(run), "--rounds", "50", "--out", str(out)])
    assert result.exit_code == PlanError.exit_code
    assert "the budget is 5" in result.output
    plan = plan_from_text(out.read_text(), source="plan.toml")
    assert plan.start is not None
    assert plan.start.spent.rho > 0


@pytest.mark.parametrize(
    ("name", "after"),
    [("a", "a-2"), ("a-2", "a-3"), ("a-9", "a-10"), ("x" * 64, "x" * 56 + "-2"), ("7", "7-2")],
)
def test_names_are_counted_up(name: str, after: str) -> None:
    assert next_name(name) == after


def test_a_coordinator_is_told_where_the_start_is_before_anything_is_submitted(
    tmp_path: Path,
) -> None:
    plain = {"secrecy": {"exchange": "plain"}}
    run = make_run(tmp_path / "run", count=3, cohort=THREE, rounds=1, **plain)
    coordinator = make_coordinator(
        tmp_path / "coordinator",
        ["localhost"],
        name="test",
        ports=(9440, 9441, 9442),
        address="127.0.0.1",
        now=datetime.now(UTC),
    )
    file = tmp_path / "plan.toml"
    plan = written(run, file, "--rounds", "2")
    wanted = order(coordinator, file, run, None, start=run, resume=False)
    assert wanted.start == run
    assert wanted.folder.name == plan.name == "small-2"
    with pytest.raises(PlanError, match="nobody says where it is"):
        order(coordinator, file, run, None, resume=False)
    with pytest.raises(ArtefactError, match="is no adapter of a run's round"):
        order(coordinator, file, run, None, start=tmp_path, resume=False)
    with pytest.raises(PlanError, match="starts anew"):
        order(coordinator, run / "plan.json", run, None, start=run, resume=False)
    (wanted.folder / "rounds/0000").mkdir(parents=True)  # begun: it has its start
    assert order(coordinator, file, run, None, resume=True).start is None
