"""Whole simulated runs of the tasks that are no plain classification: from rows to a device's answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.base import EdgeBase
from edge_runtime.runtime import EdgeRuntime
from server.history import read_history
from simulations.compare import comparison, grouped, run_files
from simulations.compare_page import compare_page
from simulations.experiment import load_experiment
from simulations.prepare import MARKER
from simulations.progress import NoProgress
from simulations.run import simulate
from simulations.summary import Summary

pytestmark = pytest.mark.slow


def rows_of(words: list[str], count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Pairs of texts of two words, repeated; the value is how often the first word comes, 0 to 5."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        first = int(rng.integers(0, 6))
        chosen = [words[0]] * first + [words[-1]] * (5 - first)
        yield {"text": " ".join(chosen[:3]), "other": " ".join(chosen[3:]), "score": float(first)}


@pytest.fixture(scope="module")
def experiment_file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    folder = tmp_path_factory.mktemp("numbers")
    vocabulary = json.loads((tiny_base / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(word for word in vocabulary if word.isalpha() and len(word) > 1)
    for name, count, seed in (("train", 240, 1), ("test", 60, 2)):
        lines = [json.dumps(row) for row in rows_of(words, count, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    path = folder / "numbers.toml"
    path.write_text(
        f"""
format = 1
name = "numbers"
base.folder = {json.dumps(str(tiny_base))}
data.train = "train.jsonl"
data.test = "test.jsonl"
[population]
clients = 5
min_rows = 8
[yardsticks]
alone = 1
personal = 2
[plan]
seed = 3
rounds = 4
task = {{ kind = "regression", low = 0, high = 5, target = "score", text_pair = "other", max_length = 16 }}
adapter.rank = 4
cohort = {{ size = 5, quorum = 4 }}
local = {{ batch_size = 8, epochs = 3, head_learning_rate = 0.03 }}
evaluation.holdout = 0.2
"""
    )
    return path


@pytest.fixture(scope="module")
def finished(experiment_file: Path) -> tuple[Path, Summary]:
    out = experiment_file.parent / "run"
    experiment = load_experiment(experiment_file)
    return out, simulate(experiment, out, resume=False, progress=NoProgress())


def test_numbers_are_learnt_in_secret_rounds(finished: tuple[Path, Summary]) -> None:
    out, summary = finished
    assert summary.audit == "ok"
    assert (summary.accuracy_federated, summary.macro_f1_federated) == (None, None)
    measured = [
        entry["nrmse"] for entry in json.loads((out / "evaluations.json").read_text())["test"]
    ]
    assert summary.nrmse_federated == measured[-1] < 0.2  # the mean of all would be off by 0.34
    assert summary.nrmse_pooled is not None
    assert summary.nrmse_alone_mean is not None
    assert summary.accuracy_personal_mean is None
    for figure in (summary.nrmse_personal_mean, summary.nrmse_global_on_own_mean):
        assert figure is not None
        assert 0 < figure < 0.2
    assert summary.nrmse_alone_on_own_mean is not None
    assert json.loads((out / "yardsticks.json").read_text())["personal"]["by"] == "values"
    record = json.loads((out / "rounds" / "0003" / "record.json").read_text())
    assert 0 < record["metrics"]["eval_error"] < record["metrics"]["eval_examples"]
    values = [event.values for event in read_history(out) if event.event == "clients"]
    assert 0 < values[-1]["holdout_nrmse"] < 1
    page = (out / "report.html").read_text()
    assert "NRMSE" in page
    assert "accuracy" not in page.lower()
    assert json.loads((out / MARKER).read_text())["rows"] == {"train": 240, "test": 60}


def test_a_device_answers_as_the_run_was_measured(finished: tuple[Path, Summary]) -> None:
    out, summary = finished
    runtime = EdgeRuntime(EdgeBase.open(Path(summary.base)))
    runtime.activate(Path(summary.adapter))
    rows = [json.loads(line) for line in (out / "test.jsonl").read_text().splitlines()]
    found = [
        answer.value for answer in runtime.infer([(row["text"], row["other"]) for row in rows])
    ]
    error = np.sqrt(np.mean((np.array(found) - [row["score"] for row in rows]) ** 2)) / 5
    assert error == pytest.approx(summary.nrmse_federated, rel=1e-3)


def test_runs_of_numbers_are_compared(finished: tuple[Path, Summary]) -> None:
    groups = grouped(run_files(finished[0]))
    figures = comparison(groups)["groups"][0]["figures"]
    assert "nrmse_federated" in figures
    assert "accuracy_federated" not in figures
    page = compare_page(groups)
    assert "NRMSE per round" in page
    assert "Accuracy per round" not in page
