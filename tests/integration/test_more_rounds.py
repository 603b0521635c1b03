"""More rounds for a finished simulation: a run of its own that goes on from the first one's adapter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from protocol.errors import ArtefactError, PlanError
from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.records import published_adapter, round_records
from simulations.run import simulate
from simulations.summary import Summary

ROOT = Path(__file__).resolve().parent.parent.parent
QUICK = [
    "yardsticks.pooled=false",
    "yardsticks.alone=0",
    "plan.cohort.size=4",
    "plan.cohort.quorum=3",
]


def run(file: Path, name: str, rounds: int, *more: str, resume: bool = False) -> Summary:
    overrides = [*QUICK, f"plan.rounds={rounds}", *more]
    experiment = load_experiment(file, overrides)
    return simulate(experiment, file.parent / name, resume=resume, progress=NoProgress())


@pytest.fixture(scope="module")
def first(experiment_file: Path) -> Summary:
    """Two rounds in `first`. Not to be changed."""
    return run(experiment_file, "first", 2)


def test_rounds_and_more_rounds_are_those_of_one_longer_run(
    experiment_file: Path, first: Summary
) -> None:
    """In clear and without moments, to the last bit: cohorts, turns, batches, rows kept out."""
    whole = run(experiment_file, "long", 3)
    more = run(experiment_file, "more", 1, "start=first")
    assert more.adapter_digest == whole.adapter_digest != first.adapter_digest
    assert more.accuracy_federated == whole.accuracy_federated
    folder = experiment_file.parent
    found = audit(Folder(folder / "more"), Trust(), before=[Folder(folder / "first")])
    assert not found.failed
    assert found.before is not None


@pytest.mark.parametrize("exchange", ["plain", "secagg"])
def test_every_round_is_pulled_to_what_the_run_goes_on_from(
    experiment_file: Path, first: Summary, exchange: str
) -> None:
    """A strong pull leaves it nearly where it was; what clients are sent for it is in the record."""
    settings = ["start=first", f"plan.secrecy.exchange={exchange}", "plan.local.optimizer=sgd"]
    settings += ["plan.cohort.weighting=uniform"]
    moved = []
    for name, strength in (("free", 0.0), ("held", 20.0)):
        run(experiment_file, f"{name}-{exchange}", 2, *settings, f"plan.local.l2_sp={strength}")
        out = experiment_file.parent / f"{name}-{exchange}"
        before, after = (published_adapter(out, number) for number in (0, 2))
        moved.append(sum(float(np.square(after[k] - before[k]).sum()) for k in before))
        down = [record["bytes_down_per_client"] for record in round_records(out)]
        assert down == [down[0], down[0] * (1 if name == "free" else 2)]
        sources = [Folder(experiment_file.parent / "first")]
        assert not audit(Folder(out), Trust(), before=sources).failed
    assert 0 < moved[1] < 0.5 * moved[0]


LOW_RANK = ["head.start=labels", "head.rank=2", "head.turns=2"]


def test_a_head_of_low_rank_goes_on_in_its_directions(experiment_file: Path) -> None:
    """Its turns too go on where the run before ended. (P-2.7)"""
    run(experiment_file, "low-first", 1, *LOW_RANK)
    whole = run(experiment_file, "low-long", 2, *LOW_RANK)
    more = run(experiment_file, "low-more", 1, "start=low-first", *LOW_RANK)
    assert more.adapter_digest == whole.adapter_digest
    assert more.accuracy_federated == whole.accuracy_federated
    folder = experiment_file.parent
    report = audit(Folder(folder / "low-more"), Trust(), before=[Folder(folder / "low-first")])
    assert not report.failed
    with pytest.raises(ArtefactError, match=r"classifier\.directions_1"):
        run(experiment_file, "low-other", 1, "start=low-first", *LOW_RANK, "head.turns=1")


def test_a_finished_run_is_not_lengthened_and_says_how_to_go_on(
    experiment_file: Path, first: Summary
) -> None:
    with pytest.raises(PlanError, match="keeps the 2 rounds") as caught:
        run(experiment_file, "first", 5, resume=True)
    assert "--start" in caught.value.remedy


def test_a_start_that_is_none_costs_nothing(experiment_file: Path, first: Summary) -> None:
    for start in ("nowhere", "first/clients", "first/rounds/0009/adapter"):
        with pytest.raises(ArtefactError, match="is no adapter of a run's round"):
            run(experiment_file, "none", 1, f"start={start}")
    plan = json.loads((experiment_file.parent / "first/plan.json").read_text())
    reverse = json.dumps(plan["task"]["labels"][::-1])
    with pytest.raises(PlanError, match="in another order"):
        run(experiment_file, "none", 1, "start=first", f"plan.task.labels={reverse}")
    with pytest.raises(PlanError, match="start"):
        run(experiment_file, "none", 1, "plan.start.round=1")
    assert not (experiment_file.parent / "none/plan.json").exists()


@pytest.mark.slow
def test_killed_in_the_second_run_and_resumed_it_ends_as_one_that_was_not(
    experiment_file: Path, first: Summary
) -> None:
    """``kill -9`` right after the first of three more rounds is there."""
    whole = run(experiment_file, "five", 5)
    out = experiment_file.parent / "killed"
    command = [sys.executable, "-m", "fedge", "simulate", str(experiment_file), "--quiet"]
    command += ["--out", str(out), "--start", str(experiment_file.parent / "first")]
    for setting in [*QUICK, "plan.rounds=3"]:
        command += ["--set", setting]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        while not (out / "rounds/0001").is_dir():
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (out / "summary.json").exists()
    subprocess.run([*command, "--resume"], cwd=ROOT, env=environment, check=True)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["adapter_digest"] == whole.adapter_digest
