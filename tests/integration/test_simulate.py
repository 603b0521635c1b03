"""A whole simulated run on the tiny base: the real apps, the real exchange, the real release."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from safetensors.numpy import load_file
from typer.testing import CliRunner

from edge_runtime.base import EdgeBase
from edge_runtime.runtime import EdgeRuntime
from protocol.errors import ArtefactError, FedgeError, PlanError, RoundError
from simulations import commands
from simulations.experiment import load_experiment
from simulations.prepare import prepare
from simulations.progress import NoProgress
from simulations.run import simulate
from simulations.summary import Summary

KEYS = {
    "name",
    "rounds",
    "clients",
    "accuracy_federated",
    "accuracy_alone_mean",
    "accuracy_pooled",
    "seconds",
    "seconds_federated",
    "seconds_pooled",
    "seconds_alone",
    "adapter_bytes",
    "adapter_sent_bytes",
    "upload_bytes_per_client_round",
    "download_bytes_per_client_round",
    "parity_max_relative",
    "parity_label_agreement",
    "tokens_per_second",
    "exchange",
    "insecure",
    "adapter_digest",
    "report",
    "dropped",
}


def run(
    file: Path,
    name: str,
    overrides: list[str] | None = None,
    *,
    resume: bool = False,
    jobs: int = 1,
) -> Summary:
    experiment, out = load_experiment(file, overrides), file.parent / name
    return simulate(experiment, out, resume=resume, progress=NoProgress(), jobs=jobs)


@pytest.fixture(scope="module")
def finished(experiment_file: Path) -> tuple[Path, Summary]:
    return experiment_file.parent / "finished", run(experiment_file, "finished")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_summary_has_its_keys_and_they_are_plausible(finished: tuple[Path, Summary]) -> None:
    folder, summary = finished
    written = read(folder / "summary.json")
    assert set(written) >= KEYS
    assert (summary.rounds, summary.clients, summary.dropped) == (10, 6, 0)
    assert summary.accuracy_federated > 0.5  # chance is 0.25
    assert summary.accuracy_pooled is not None
    assert summary.accuracy_pooled > 0.5
    assert summary.accuracy_alone_mean is not None
    assert summary.accuracy_alone_mean < summary.accuracy_pooled
    assert summary.upload_bytes_per_client_round < summary.download_bytes_per_client_round
    assert summary.parity_max_relative <= 1e-4
    assert summary.parity_label_agreement == 1.0
    assert summary.tokens_per_second > 0
    assert summary.exchange == "plain"
    assert any("plain" in line for line in summary.insecure)


def test_the_run_folder_is_complete(finished: tuple[Path, Summary]) -> None:
    folder, _ = finished
    assert (
        sorted(path.name for path in (folder / "rounds").iterdir() if path.name.isdigit())
        == [f"{number:04d}" for number in range(1, 11)]
        or (folder / "rounds" / "0000").is_dir()
    )
    assert len(list((folder / "clients").iterdir())) == 6
    assert [entry["round"] for entry in read(folder / "evaluations.json")["test"]] == [4, 8, 10]
    yardsticks = read(folder / "yardsticks.json")
    assert yardsticks["pooled"]["passes"] == pytest.approx(10 * 4 / 6)
    assert len(yardsticks["alone"]["per_client"]) == 2
    leftovers = [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    assert leftovers == []


def test_every_row_is_with_exactly_one_device(finished: tuple[Path, Summary]) -> None:
    folder, _ = finished
    lines = [
        line for path in (folder / "clients").iterdir() for line in path.read_text().splitlines()
    ]
    original = (folder.parent / "train.jsonl").read_text().splitlines()
    assert sorted(map(json.loads, lines), key=str) == sorted(map(json.loads, original), key=str)


def test_the_released_adapter_runs_on_a_device(finished: tuple[Path, Summary]) -> None:
    folder, summary = finished
    base = EdgeBase.open((folder / read(folder / "experiment.json")["base_folder"]).resolve())
    runtime = EdgeRuntime(base)
    runtime.activate(folder / "rounds" / "0010" / "adapter")
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    right = sum(
        prediction.label == row["label"]
        for prediction, row in zip(runtime.infer([row["text"] for row in rows]), rows, strict=True)
    )
    assert right / len(rows) == pytest.approx(summary.accuracy_federated)
    fit = read(folder / "rounds/0010/adapter/release.json")["calibration"]
    assert fit["rows"] == len(rows)
    assert fit["nll_after"] <= fit["nll_before"] + 0.01
    earlier = sorted((folder / "rounds").glob("000[1-9]/adapter/release.json"))
    assert {read(path)["calibration"] for path in earlier} == {None}


def test_a_finished_run_that_is_resumed_repeats_nothing(finished: tuple[Path, Summary]) -> None:
    folder, summary = finished
    watched = [*folder.glob("rounds/*/record.json"), folder / "yardsticks.json"]
    before = {path: path.stat().st_mtime_ns for path in watched}
    again = run(folder.parent / "tiny.toml", "finished", resume=True)
    assert again.adapter_digest == summary.adapter_digest
    assert {path: path.stat().st_mtime_ns for path in watched} == before


def test_measurements_that_are_missing_are_made_up_for(finished: tuple[Path, Summary]) -> None:
    folder, summary = finished
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    before = read(copy / "evaluations.json")
    (copy / "evaluations.json").unlink()
    assert run(folder.parent / "tiny.toml", "copy", resume=True).accuracy_federated == (
        summary.accuracy_federated
    )
    assert read(copy / "evaluations.json") == before


def test_a_folder_that_is_not_empty_is_refused(finished: tuple[Path, Summary]) -> None:
    folder, _ = finished
    with pytest.raises(ArtefactError, match="--resume"):
        run(folder.parent / "tiny.toml", "finished")


def test_another_experiment_is_not_resumed(finished: tuple[Path, Summary]) -> None:
    folder, _ = finished
    with pytest.raises(PlanError, match="`population` differs"):
        run(folder.parent / "tiny.toml", "finished", ["population.alpha=9.0"], resume=True)


def test_the_same_seed_gives_the_same_adapter_whoever_trains_at_a_time_and_another_another(
    finished: tuple[Path, Summary], experiment_file: Path
) -> None:
    short = ["plan.rounds=2", "yardsticks.pooled=false", "yardsticks.alone=0"]
    one = run(experiment_file, "seed-a", short)
    same = run(experiment_file, "seed-b", short, jobs=3)
    other = run(experiment_file, "seed-c", [*short, "plan.seed=4"])
    assert one.adapter_digest == same.adapter_digest != other.adapter_digest
    assert one.accuracy_pooled is None
    assert one.accuracy_alone_mean is None


def test_late_updates_are_in_later_sums_and_the_adapter_is_the_same_whoever_trains_at_a_time(
    experiment_file: Path,
) -> None:
    settings = [
        *("plan.rounds=6", "yardsticks.pooled=false", "yardsticks.alone=0", "plan.rule.name=mean"),
        *("population.clients=12", "population.partition=iid", "plan.secrecy.exchange=secagg"),
        *("plan.cohort.weighting=uniform",),
        *("plan.cohort.size=9", "plan.cohort.spare=3", "plan.cohort.quorum=6"),
        *("faults.training_s=1.0", "faults.slow=0.25", "faults.slowness=3.0"),
        *("faults.dropout=0.0", "faults.straggler=0.0"),
    ]
    kept = [*settings, "plan.cohort.late_rounds=4"]
    one = run(experiment_file, "late-a", kept)
    same = run(experiment_file, "late-b", kept, jobs=3)
    other = run(experiment_file, "late-c", settings)
    assert one.adapter_digest == same.adapter_digest != other.adapter_digest
    assert one.audit == same.audit == "ok"
    folder = experiment_file.parent / "late-a"
    slow = {
        drop["client"]
        for path in folder.glob("rounds/000[1-6]/record.json")
        for drop in read(path)["dropped"]
    }
    used = [read(path)["used"] for path in sorted(folder.glob("rounds/000[1-6]/record.json"))]
    assert slow
    assert any(slow & {*names} for names in used)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.glob("clients/*.kept/*"))


def test_faults_are_recorded_with_their_cause(experiment_file: Path) -> None:
    short = ["plan.rounds=4", "yardsticks.pooled=false", "yardsticks.alone=0"]
    faults = ["faults.dropout=0.2", "faults.straggler=0.2", "plan.cohort.size=6"]
    summary = run(experiment_file, "faulty", [*short, *faults])
    records = [
        read(path) for path in sorted(experiment_file.parent.glob("faulty/rounds/*/record.json"))
    ]
    dropped = [entry for record in records for entry in record["dropped"]]
    assert summary.dropped == len(dropped) > 0
    assert {entry["reason"] for entry in dropped} == {"no-reply", "late"}
    for record in records:
        left = {*record["used"], *(entry["client"] for entry in record["dropped"])}
        assert left == set(record["expected"])


def test_a_round_without_a_quorum_ends_the_run_with_a_clear_error(experiment_file: Path) -> None:
    with pytest.raises(RoundError) as caught:
        run(experiment_file, "hopeless", ["faults.dropout=1.0", "yardsticks.pooled=false"])
    assert caught.value.remedy


@pytest.mark.parametrize(
    "overrides",
    [
        ["plan.rule.name=mean"],
        ["plan.adapter.method=lora-sb", "plan.adapter.targets=all-linear"],
        ["plan.rule.name=first", "plan.server.optimizer=fedavgm"],
        ["plan.adapter.method=prompt", "plan.adapter.tokens=4"],
    ],
    ids=lambda overrides: overrides[0].rpartition("=")[2],
)
def test_every_rule_runs_to_a_release(experiment_file: Path, overrides: list[str]) -> None:
    name = overrides[0].rpartition("=")[2]
    short = ["plan.rounds=2", "yardsticks.alone=0", "population.clients=4", "plan.cohort.size=3"]
    summary = run(experiment_file, f"rule-{name}", [*short, *overrides])
    assert summary.parity_max_relative <= 1e-4
    assert summary.parity_label_agreement == 1.0
    out = experiment_file.parent / f"rule-{name}"
    words = json.loads((out / "summary.json").read_text()).get("prompt_words")
    in_words = "The soft prompt in words" in (out / "report.html").read_text()
    if name == "prompt":
        assert [len(row["nearest"]) for row in words] == [5] * 4
        assert in_words
    else:
        assert (words, in_words) == (None, False)


def test_the_command_prints_json_and_nothing_else(experiment_file: Path) -> None:
    app = typer.Typer()
    app.command()(commands.simulate)
    result = CliRunner().invoke(
        app,
        [
            str(experiment_file),
            "--set",
            "plan.rounds=1",
            "--set",
            "yardsticks.pooled=false",
            "--set",
            "yardsticks.alone=0",
            "--out",
            str(experiment_file.parent / "cli"),
            "--json",
        ],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    assert set(json.loads(result.stdout)) >= KEYS


def test_labels_the_plan_does_not_list_are_refused_before_training(experiment_file: Path) -> None:
    with pytest.raises(FedgeError, match=r"line [0-9]+: the label .door. is not in the plan"):
        run(experiment_file, "labels", ['plan.task.labels=["lamp", "music"]'])
    assert not (experiment_file.parent / "labels" / "experiment.json").exists()


def test_a_preparation_that_was_killed_is_done_again(experiment_file: Path) -> None:
    experiment, out = load_experiment(experiment_file), experiment_file.parent / "half-prepared"
    prepare(experiment, out, resume=False, progress=NoProgress())
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "experiment.json").unlink()
    (out / "clients" / "client-0000.jsonl").unlink()
    (out / "clients" / "client-9999.jsonl").write_text("{}")
    prepare(experiment, out, resume=True, progress=NoProgress())
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files


def test_a_folder_that_is_no_run_is_left_alone(experiment_file: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ArtefactError, match=r"thesis\.tex"):
        simulate(load_experiment(experiment_file), tmp_path, resume=True, progress=NoProgress())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_illegal_plan_leaves_no_run_behind(experiment_file: Path) -> None:
    with pytest.raises(FedgeError):
        run(experiment_file, "illegal", ["plan.secrecy.groups=2"])
    assert not (experiment_file.parent / "illegal").exists()
    run(experiment_file, "illegal", ["plan.rounds=1", "yardsticks.pooled=false"])


SECRET = [
    "plan.secrecy.exchange=secagg",
    "plan.cohort.weighting=uniform",
    "plan.cohort.size=6",
    "plan.cohort.quorum=3",
    "plan.rounds=3",
    "yardsticks.pooled=false",
    "yardsticks.alone=0",
]


def test_under_secure_aggregation_the_adapter_is_nearly_that_of_plain(
    experiment_file: Path,
) -> None:
    secret = run(experiment_file, "secret", SECRET, jobs=3)
    plain = run(experiment_file, "open", [*SECRET, "plan.secrecy.exchange=plain"])
    records = [
        read(path) for path in sorted(experiment_file.parent.glob("secret/rounds/*/record.json"))
    ]
    assert all(record["secure"] for record in records)
    assert [record["sequence"] for record in records[1:]] == [1, 2, 3]
    vectors = []
    for name in ("secret", "open"):
        folder = experiment_file.parent / name / "rounds" / "0003" / "adapter"
        tensors = load_file(folder / "adapter_model.safetensors")
        vectors.append(np.concatenate([tensors[key].reshape(-1) for key in sorted(tensors)]))
    assert np.linalg.norm(vectors[0] - vectors[1]) < 0.02 * np.linalg.norm(vectors[1])
    assert abs(secret.accuracy_federated - plain.accuracy_federated) < 0.05
    assert secret.exchange == "secagg"
    assert not any("sees the update" in line for line in secret.insecure)


def test_a_core_is_learnt_under_secure_aggregation_and_measured_as_published(
    experiment_file: Path,
) -> None:
    cores = [
        "plan.adapter.method=lora-sb",
        "plan.adapter.targets=all-linear",
        "plan.local.learning_rate=0.01",
        "plan.rounds=8",
        "yardsticks.pooled=true",
        "yardsticks.alone=1",
    ]
    summary = run(experiment_file, "cores", [*SECRET, *cores])
    folder = experiment_file.parent / "cores"
    assert summary.exchange == "secagg"
    assert summary.accuracy_federated > 0.4  # chance is 0.25
    assert summary.accuracy_pooled is not None
    assert summary.accuracy_pooled > 0.5
    assert summary.parity_max_relative <= 1e-4
    first, last = (
        load_file(folder / "rounds" / number / "checkpoint.safetensors")
        for number in ("0000", "0008")
    )
    for name in (name for name in first if name.startswith("adapter/")):
        fixed = name.endswith(("lora_A", "lora_B"))
        assert (first[name].tobytes() == last[name].tobytes()) == fixed, name
    record = read(folder / "rounds" / "0008" / "record.json")
    moved = {
        name
        for name in last
        if name.startswith("adapter/") and name[-6:] not in ("lora_A", "lora_B")
    }
    assert record["bytes_down_per_client"] == sum(last[name].nbytes for name in moved)
    note = read(folder / "rounds" / "0008" / "adapter" / "release.json")
    assert note["adapter_digest"] == record["adapter_published"] == summary.adapter_digest
    assert record["adapter_published"] != record["adapter_out"]
    before = read(folder / "evaluations.json")
    (folder / "evaluations.json").unlink()
    run(experiment_file, "cores", [*SECRET, *cores], resume=True)  # from the published folders
    assert read(folder / "evaluations.json") == before


@pytest.mark.parametrize("keys", ["x25519", "x25519+ml-kem-768"])
def test_losses_in_every_phase_are_survived_and_named(experiment_file: Path, keys: str) -> None:
    faults = ["faults.dropout=0.15", "faults.straggler=0.1", "plan.cohort.attempts=9"]
    name = f"lossy-{keys}"
    given = [*SECRET, *faults, "plan.rounds=6", f'plan.secrecy.keys="{keys}"']
    run(experiment_file, name, given, jobs=2)
    records = [
        read(path)
        for path in sorted(experiment_file.parent.glob(f"{name}/rounds/*/record.json"))[1:]
    ]
    assert len(records) == 6
    assert any(record["dropped"] or record["lost"] for record in records)
    for record in records:
        left = {*record["used"], *(entry["client"] for entry in record["dropped"])}
        assert left == set(record["expected"])
        assert len(record["used"]) >= 3
