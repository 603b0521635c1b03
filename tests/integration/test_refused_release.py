"""A run whose adapter may not be released keeps its result: summary, report, audit, and the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from delivery.release_commands import release
from protocol.errors import RoundError
from protocol.peft_format import ParityError
from simulations import commands, sweep_commands
from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.report import write_report
from simulations.run import simulate

SHORT = [
    "plan.rounds=2",
    "yardsticks.alone=0",
    "yardsticks.pooled=false",
    "population.clients=4",
    "plan.cohort.size=3",
]
STRICT = ["plan.release.parity_max_relative=1e-12", "plan.release.parity_max_absolute=1e-12"]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def refused(experiment_file: Path) -> Path:
    """The folder of a run that no engine could release: its bounds are below rounding."""
    out = experiment_file.parent / "refused"
    experiment = load_experiment(experiment_file, [*SHORT, *STRICT])
    with pytest.raises(ParityError, match="differ by"):
        simulate(experiment, out, resume=False, progress=NoProgress())
    return out


def test_summary_and_report_are_written_and_say_why(refused: Path) -> None:
    summary = read(refused / "summary.json")
    assert "differ by" in summary["refused"]
    assert 1e-12 < summary["parity_max_relative"] < 1e-4
    assert summary["parity_label_agreement"] == 1.0
    assert summary["adapter_bytes"] is None
    assert (summary["rounds"], summary["audit"]) == (2, "unverifiable")  # in clear
    assert summary["accuracy_federated"] > 0
    page = (refused / "report.html").read_text()
    assert "Round 2 is not released" in page
    assert "differ by" in page
    assert "refused" in page
    kept = read(refused / "refused.json")
    assert (kept["round"], kept["kind"]) == (2, "ParityError")
    assert kept["parity"]["bound"] == 1e-12


def test_resuming_repeats_no_round_and_says_the_same(refused: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in refused.glob("rounds/*/record.json")}
    (refused / "summary.json").unlink()
    app = typer.Typer()
    app.command()(commands.simulate)
    changes = [part for change in [*SHORT, *STRICT] for part in ("--set", change)]
    command = [str(refused.parent / "tiny.toml"), *changes, "--out", str(refused), "--resume"]
    result = CliRunner().invoke(app, [*command, "--quiet"])
    assert isinstance(result.exception, ParityError)
    assert result.exception.exit_code == 5
    assert f"report: {refused / 'report.html'}" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "differ by" in read(refused / "summary.json")["refused"]


def test_release_leaves_the_reason_where_the_report_reads_it(refused: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(refused, run)
    (run / "refused.json").unlink()
    base = (refused / read(refused / "experiment.json")["base_folder"]).resolve()
    with pytest.raises(ParityError, match="differ by"):
        release(run, base=base, rows=run / "test.jsonl", round_number=1)
    assert read(run / "refused.json")["round"] == 1
    assert "Round 1 is not released" in write_report(run).read_text()


def test_a_run_that_ends_early_has_a_report_with_the_reason(experiment_file: Path) -> None:
    out = experiment_file.parent / "early"
    experiment = load_experiment(experiment_file, [*SHORT, "faults.dropout=1.0"])
    with pytest.raises(RoundError):
        simulate(experiment, out, resume=False, progress=NoProgress())
    page = (out / "report.html").read_text()
    assert "The run ended before its plan" in page
    assert read(out / "outcome.json")["cause"].split(":")[0] in page


def test_a_sweep_that_is_repeated_says_the_same_and_ends_alike(experiment_file: Path) -> None:
    out = experiment_file.parent / "swept-refused"
    changes = [*SHORT, STRICT[1], "plan.rounds=1"]
    sets = [part for change in changes for part in ("--set", change)]
    app = typer.Typer()
    app.command()(sweep_commands.sweep)
    over = ["--over", STRICT[0], "--seeds", "0", "--out", str(out), "--json", "--quiet"]

    def sweep() -> Any:
        command = [str(experiment_file), *sets, *over]
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 1
        return json.loads(done.stdout)

    first = sweep()
    assert "differ by" in first[0]["reason"]
    assert first[0]["seeds"] == [0]
    records = {path: path.stat().st_mtime_ns for path in out.glob("*/summary.json")}
    assert len(records) == 1
    assert sweep() == first
    assert {path: path.stat().st_mtime_ns for path in records} == records


@pytest.mark.slow
def test_a_release_that_succeeds_takes_the_reason_away(experiment_file: Path) -> None:
    out = experiment_file.parent / "mended"
    experiment = load_experiment(experiment_file, SHORT)
    simulate(experiment, out, resume=False, progress=NoProgress())
    (out / "refused.json").write_text('{"round": 2, "cause": "x", "remedy": "y", "parity": null}')
    base = (out / read(out / "experiment.json")["base_folder"]).resolve()
    release(out, base=base, rows=out / "test.jsonl")
    assert not (out / "refused.json").exists()
