"""``fedge metrics``: its lines, and files that TensorBoard and MLflow themselves read.

The latter need the extra: ``pip install -c constraints.txt '.[tracking]'``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedge.main import COMMANDS
from fedge.metrics import read_run, settings_of
from protocol.errors import ArtefactError
from server.history import append_events, evaluation_event
from tests.unit.audit.runs import go_on, make_run

THREE = {"cohort": {"size": 3, "quorum": 3, "deadline_s": 30.0}, "count": 3}
PLAIN = {"secrecy": {"exchange": "plain"}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two rounds, and one more that goes on. Not to be changed."""
    folder = tmp_path_factory.mktemp("trackers")
    first = make_run(folder / "run", **THREE, **PLAIN)
    plan, _ = read_run(first)
    event = evaluation_event(plan, 2, {"accuracy": 0.75, "labels": {"a": 1.0}}, now=7.0)
    append_events(first, iter([event]))
    return first, go_on(first, folder / "more", name="more", rounds=1, **THREE, **PLAIN)


def told(*arguments: str) -> str:
    import typer

    from fedge.metrics import metrics

    app = typer.Typer()
    app.command()(metrics)
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_without_a_tracker_the_events_are_printed(runs: tuple[Path, Path]) -> None:
    events = [json.loads(line) for line in told(str(runs[0])).splitlines()]
    kinds = [(event["round"], event["event"]) for event in events]
    assert kinds == sorted(
        [(1, "clients"), (1, "round"), (2, "clients"), (2, "evaluation"), (2, "round")]
    )
    assert events == json.loads(told(str(runs[0]), "--json"))["events"]
    assert "metrics" in COMMANDS


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"plan\.json cannot be read"):
        told(str(tmp_path))


def test_tensorboard_reads_every_number(runs: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for run in runs:
        told(str(run), "--tensorboard", str(tmp_path))
        plan, events = read_run(run)
        read = EventAccumulator(str(tmp_path / plan.name))
        read.Reload()
        expected = {
            (f"{event.event}/{name}", event.turn): pytest.approx(value, rel=1e-6)
            for event in events
            for name, value in event.values.items()
        }
        scalars = read.Tags()["scalars"]
        assert {(tag, s.step): s.value for tag in scalars for s in read.Scalars(tag)} == expected
    with pytest.raises(ArtefactError, match="exists already"):
        told(str(runs[0]), "--tensorboard", str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["more", "small"]


def test_mlflow_reads_every_number_and_setting(runs: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    file = tmp_path / "mlflow.db"
    for run in runs:
        told(str(run), "--mlflow", str(file))
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{file}")
    experiment = client.get_experiment_by_name("fedge")
    assert experiment is not None
    found = {each.info.run_name: each for each in client.search_runs([experiment.experiment_id])}
    assert set(found) == {"small", "more"}
    for run in runs:
        plan, events = read_run(run)
        mine = found[plan.name]
        assert mine.info.status == "FINISHED"
        assert mine.data.params == {key: value for key, value in settings_of(plan).items() if value}
        for event in events:
            for name, value in event.values.items():
                history = client.get_metric_history(mine.info.run_id, f"{event.event}/{name}")
                assert {m.step: m.value for m in history}[event.turn] == value
    with pytest.raises(ArtefactError, match="already"):
        told(str(runs[0]), "--mlflow", str(file))
