"""What devices gain by a part of their own, and what a run that goes on has forgotten, in whole runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ArtefactError, PlanError
from simulations.evaluation import Evaluator
from simulations.experiment import Experiment, load_experiment
from simulations.personal import sampled
from simulations.prepare import prepare
from simulations.progress import NoProgress
from simulations.records import published_adapter
from simulations.run import simulate
from simulations.summary import Summary
from simulations.yardstick_training import participants, passes, pooled_rows

QUICK = ["yardsticks.pooled=false", "plan.rounds=2", "plan.local.max_steps=3"]
PERSONAL = [*QUICK, "yardsticks.alone=1", "yardsticks.personal=3"]


def run(file: Path, name: str, *settings: str, resume: bool = False) -> Summary:
    experiment = load_experiment(file, list(settings))
    return simulate(experiment, file.parent / name, resume=resume, progress=NoProgress())


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def finished(experiment_file: Path) -> tuple[Path, Summary]:
    """Not to be changed."""
    summary = run(experiment_file, "personal", *PERSONAL)
    return experiment_file.parent / "personal", summary


def test_devices_are_measured_on_their_own_rows_by_three_adapters(
    finished: tuple[Path, Summary],
) -> None:
    out, summary = finished
    personal = read(out / "yardsticks.json")["personal"]
    assert personal["by"] == "labels"
    assert len(personal["per_client"]) == 3
    for name, figures in personal["per_client"].items():
        entry = summary.per_client[name]
        assert figures["federated"] == entry["global_on_own"] == entry["federated"]
        assert figures["alone"] == entry["alone_on_own"] == entry["alone"]
        assert 0 <= figures["personal"] == entry["personal"] <= 1
        assert figures["rows"] == entry["rows"]
    for key, whose in (
        ("global_on_own", "federated"),
        ("personal", "personal"),
        ("alone_on_own", "alone"),
    ):
        values = [figures[whose] for figures in personal["per_client"].values()]
        assert getattr(summary, f"accuracy_{key}_mean") == pytest.approx(sum(values) / 3)
    assert summary.nrmse_personal_mean is None
    # So few rounds know little of anybody's labels; a device's own rows teach it.
    assert summary.accuracy_personal_mean > summary.accuracy_global_on_own_mean
    assert summary.seconds_forecast["personal"] > 0 < summary.seconds_by_part["personal"]


def test_the_report_shows_them(finished: tuple[Path, Summary]) -> None:
    out, _ = finished
    page = (out / "report.html").read_text()
    assert "A part of each device" in page
    assert "mean of 3 devices" in page
    assert "What the runs before had learnt" not in page


def test_what_is_missing_is_made_up_for_bit_for_bit_and_nothing_else(
    finished: tuple[Path, Summary], tmp_path: Path
) -> None:
    out, summary = finished
    copy = out.with_name("personal-copy")
    shutil.copytree(out, copy)
    kept = read(copy / "yardsticks.json")
    gone, *others = kept["personal"]["per_client"]
    del kept["personal"]["per_client"][gone]
    kept["personal"]["per_client"][others[0]]["personal"] = (
        0.125  # would be lost if it were repeated
    )
    (copy / "yardsticks.json").write_text(json.dumps(kept))
    again = run(out.with_name("tiny.toml"), copy.name, *PERSONAL, resume=True)
    assert again.per_client[gone] == summary.per_client[gone]
    assert again.per_client[others[0]]["personal"] == 0.125


def test_the_head_alone_leaves_the_rest_as_it_was(
    finished: tuple[Path, Summary], experiment_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulations import personal

    adapters = []
    train = personal.trained

    def kept(*given: Any, **named: Any) -> Any:
        adapters.append((named["start"], train(*given, **named)))
        return adapters[-1][1]

    monkeypatch.setattr(personal, "trained", kept)
    settings = [*QUICK, "yardsticks.alone=0", "yardsticks.personal=1"]
    run(experiment_file, "personal-head", *settings, "yardsticks.personal_parts=head")
    ((before, after),) = adapters
    moved = {name for name in before if (before[name] != after[name]).any()}
    assert moved == {"classifier.weight", "classifier.bias"}
    shared = published_adapter(experiment_file.parent / "personal-head", 2)
    assert all((before[name] == shared[name]).all() for name in shared)


def test_a_run_begun_before_these_keys_were_there_goes_on(experiment_file: Path) -> None:
    settings = [*QUICK, "yardsticks.alone=0"]
    out = experiment_file.parent / "older"
    experiment = load_experiment(experiment_file, settings)
    prepare(experiment, out, resume=False, progress=NoProgress())
    marker = read(out / "experiment.json")
    for name, section in Experiment.model_fields.items():
        if isinstance(content := marker[name], dict) and name != "plan":
            for key, field in section.annotation.model_fields.items():
                if not field.is_required() and content[key] == field.default:
                    del content[key]
            if not content and not section.is_required():
                del marker[name]
    assert "seconds" not in marker["base"]
    assert "personal" not in marker["yardsticks"]
    (out / "experiment.json").write_text(json.dumps(marker))
    prepare(experiment, out, resume=True, progress=NoProgress())
    asked = load_experiment(experiment_file, [*settings, "yardsticks.personal=2"])
    with pytest.raises(PlanError, match="`yardsticks` differs"):
        prepare(asked, out, resume=True, progress=NoProgress())
    marker["base"]["later"] = 1
    (out / "experiment.json").write_text(json.dumps(marker))
    with pytest.raises(ArtefactError, match=r"experiment\.json: base\.later"):
        prepare(experiment, out, resume=True, progress=NoProgress())


def test_yardsticks_of_a_cluster_are_of_its_own_rows(experiment_file: Path) -> None:
    named = ["client-0001", "client-0002", "client-0004"]
    settings = [
        f"plan.cohort.clients={json.dumps(named)}",
        "plan.cohort.size=3",
        "plan.local.max_steps=0",
    ]
    experiment = load_experiment(experiment_file, [*QUICK, "plan.cohort.quorum=3", *settings])
    out = experiment_file.parent / "cluster"
    prepared = prepare(experiment, out, resume=False, progress=NoProgress())
    assert participants(prepared) == sorted(sampled(prepared)) == [1, 2, 4]
    files = [out / "clients" / f"{name}.jsonl" for name in named]
    rows = sum(len(file.read_text().splitlines()) for file in files)
    assert len(pooled_rows(prepared)) == rows
    local = prepared.plan.local
    assert passes(prepared) == prepared.plan.rounds * local.epochs  # all of them, in every round


class Warnings(NoProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


def test_test_rows_that_name_their_device_are_its_own(experiment_file: Path) -> None:
    """Of four devices one has none, so three are personalised where four were asked for."""
    folder = experiment_file.parent
    for name in ("train", "test"):
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        rows = [json.loads(line) | {"who": number % 4} for number, line in enumerate(lines)]
        rows = [row for row in rows if name == "train" or row["who"] != 3]
        (folder / f"{name}-who.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [f"data.{name}={name}-who.jsonl" for name in ("train", "test")]
    settings += ["population.partition=column", "population.column=who", "population.clients=4"]
    settings += ["yardsticks.alone=0", "yardsticks.personal=4"]
    experiment = load_experiment(experiment_file, [*QUICK, *settings])
    out, progress = folder / "who", Warnings()
    summary = simulate(experiment, out, resume=False, progress=progress)
    own = read(out / "own_rows.json")
    assert own["by"] == "column"
    values = {name: each["value"] for name, each in read(out / "clients.json")["clients"].items()}
    assert own["rows"] == {
        name: [*range(int(value), 90, 3)] if value != "3" else [] for name, value in values.items()
    }
    served = {values[name] for name, each in summary.per_client.items() if "personal" in each}
    assert served == {"0", "1", "2"}
    assert "only 3 of 4 devices have test rows of their own" in progress.said
    line = (out / "test.jsonl").read_text().splitlines()[0]
    assert set(json.loads(line)) == {"text", "label"}


def test_a_run_that_goes_on_is_measured_on_what_each_before_it_had_learnt(
    experiment_file: Path,
) -> None:
    """Of a chain of three; then its first folder loses the rows that it was tested on."""
    folder, settings = experiment_file.parent, [*QUICK, "yardsticks.alone=0"]
    lines = (folder / "test.jsonl").read_text().splitlines(keepends=True)
    (folder / "half.jsonl").write_text("".join(lines[:60]))
    one = run(experiment_file, "task-1", *settings)
    assert (one.forgetting, one.accuracy_forgotten_mean) == ([], None)
    two = run(experiment_file, "task-2", *settings, "start=task-1", "data.test=half.jsonl")
    three = run(experiment_file, "task-3", *settings, "start=task-2", "plan.name=three")
    first = two.forgetting[0]
    assert first["then"] == one.accuracy_federated
    assert first["rows"] == 120
    latest, earliest = three.forgetting
    assert (latest["rows"], latest["then"]) == (60, two.accuracy_federated)
    assert (earliest["then"], earliest["now"]) == (one.accuracy_federated, three.accuracy_federated)
    for entry in (first, latest, earliest):
        assert entry["forgotten"] == pytest.approx(entry["then"] - entry["now"])
    mean = (latest["forgotten"] + earliest["forgotten"]) / 2
    assert three.accuracy_forgotten_mean == pytest.approx(mean)
    third = prepare(
        load_experiment(experiment_file, [*settings, "start=task-2", "plan.name=three"]),
        folder / "task-3",
        resume=True,
        progress=NoProgress(),
    )
    tested = Evaluator(third.plan, third.base, folder / "task-2/test.jsonl")
    now = tested.measure(published_adapter(folder / "task-3", 2)).quality
    assert latest["now"] == now
    assert "What the runs before had learnt" in (folder / "task-3/report.html").read_text()

    (folder / "task-3/forgetting.json").unlink()
    (folder / "task-1/test.jsonl").unlink()
    again = run(
        experiment_file, "task-3", *settings, "start=task-2", "plan.name=three", resume=True
    )
    assert again.forgetting == [
        latest,
        {"run": "tiny", "why": "its test rows are not there"},
    ]
    assert again.accuracy_forgotten_mean == latest["forgotten"]
    assert "its test rows are not there" in (folder / "task-3/report.html").read_text()
