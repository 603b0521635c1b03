"""What a run says while it is at work and at its end: lines, warnings, forecasts, and figures by name."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from flwr.common.logger import console_handler

from fedge.main import COMMANDS
from protocol.errors import ArtefactError, FedgeError, PlanError
from simulations.bars import watched

SHORT = ["plan.rounds=2", "plan.evaluation.every=1", "yardsticks.alone=1"]
ODD = ["plan.local.head_learning_rate=0.9"]


def call(command: str, *arguments: object, sets: list[str] | None = None) -> Result:
    settings = [part for each in sets or [] for part in ("--set", each)]
    return CliRunner().invoke(
        COMMANDS[command].load(), [*map(str, arguments), *settings], catch_exceptions=False
    )


@pytest.fixture(scope="module")
def named_file(experiment_file: Path) -> Path:
    """The rows with a room each, and a label that stands in the test file only."""
    for name in ("train", "test"):
        lines = (experiment_file.parent / f"{name}.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) | {"room": "ABCDEF"[n % 6]} for n, line in enumerate(lines)]
        if name == "test":
            rows[0]["label"] = "tipo"
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (experiment_file.parent / f"{name}-rooms.jsonl").write_text(text, "utf-8")
    text = experiment_file.read_text("utf-8").replace('"dirichlet"', '"column"\ncolumn = "room"')
    text = text.replace("train.jsonl", "train-rooms.jsonl").replace(
        "test.jsonl", "test-rooms.jsonl"
    )
    file = experiment_file.with_name("rooms.toml")
    file.write_text(text, "utf-8")
    return file


@pytest.fixture(scope="module")
def said(named_file: Path) -> tuple[Path, Result]:
    out = named_file.parent / "says"
    return out, call("simulate", named_file, "--out", out, "--json", sets=[*SHORT, *ODD])


def summary(said: tuple[Path, Result]) -> dict[str, Any]:
    return dict(json.loads(said[1].stdout))


def test_without_a_terminal_every_round_is_a_line(said: tuple[Path, Result]) -> None:
    assert not console_handler.colored  # nor are Flower's own lines for terminals
    lines = said[1].stderr.splitlines()
    rounds = [line for line in lines if line.startswith("round ")]
    form = r"round {} of 2: accuracy [0-9.]+%, loss [0-9.]+; .*, about .* left"
    assert len(rounds) == 2
    assert all(re.fullmatch(form.format(n), line) for n, line in enumerate(rounds, 1))
    assert any(line.startswith("all data in one place: accuracy") for line in lines)
    assert any(re.match(r"client-\d+ \([A-F]\) alone: accuracy", line) for line in lines)


def test_warnings_come_before_the_first_round_and_stay(said: tuple[Path, Result]) -> None:
    lines = said[1].stderr.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("round 1"))
    wanted = ("`local.head_learning_rate`", "'tipo' stands in the test rows only", "INSECURE")
    page = html.unescape((said[0] / "report.html").read_text("utf-8"))
    for text in wanted:
        assert any(text in line for line in lines[:first]), text
        assert any(text in line for line in summary(said)["warnings"]), text
        assert text in page, text


def test_quiet_says_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    with watched(quiet=True) as progress:
        progress.line("round 1 of 2")
        progress.update("rounds", 1, 2)
        progress.warn("warning `local.learning_rate`: odd")
    assert capsys.readouterr().err == "warning `local.learning_rate`: odd\n"


def test_the_forecast_is_beside_what_it_took(said: tuple[Path, Result]) -> None:
    body = summary(said)
    assert sum(body["seconds_by_part"].values()) == pytest.approx(body["seconds"])
    assert {"prepare", "federated", "evaluation", "pooled", "alone", "release", "other"} <= (
        body["seconds_by_part"].keys()
    )
    forecast = json.loads((said[0] / "forecast.json").read_text("utf-8"))
    assert body["seconds_forecast"] == forecast["parts"]
    assert min(forecast["pace"].values()) > 0
    assert "3 steps of 8 rows took" in said[1].stderr


def test_figures_by_label_and_by_client_have_their_names(said: tuple[Path, Result]) -> None:
    body = summary(said)
    assert body["per_label"]["tipo"]["federated"]["recall"] == 0.0
    assert set(body["per_label"]) == {"lamp", "music", "heating", "door", "tipo"}
    assert {"federated", "pooled", "alone"} <= body["per_label"]["lamp"].keys()
    rows = sum(entry["rows"] for entry in body["per_label"].values())
    assert rows == body["rows_test"] == 120
    right = sum(e["rows"] * e["federated"]["recall"] for e in body["per_label"].values())
    assert right / rows == pytest.approx(body["accuracy_federated"])
    losses = sum(e["rows"] * e["pooled"]["loss"] for e in body["per_label"].values())
    assert losses / rows == pytest.approx(body["loss_pooled"])
    assert [entry["value"] for entry in body["per_client"].values()] == list("ABCDEF")
    assert sum("alone" in entry for entry in body["per_client"].values()) == 1
    for key in ("loss", "macro_f1"):
        assert all(
            body[f"{key}_{whose}"] is not None for whose in ("federated", "pooled", "alone_mean")
        )
    page = html.unescape((said[0] / "report.html").read_text("utf-8"))
    assert all(f"<td>{room}</td>" in page for room in "ABCDEF")


def test_several_seeds_are_one_command_and_resumable(experiment_file: Path) -> None:
    sets = ["plan.rounds=1", "yardsticks.pooled=false", "yardsticks.alone=0"]
    out = experiment_file.parent / "seeds"

    def run(seeds: str, *more: str) -> dict[str, Any]:
        command = (experiment_file, "--out", out, "--seeds", seeds, "--json", *more)
        return dict(json.loads(call("simulate", *command, sets=sets).stdout))

    first = run("1")
    assert first["seeds"] == [1]
    values = first["groups"][0]["figures"]["accuracy_federated"]["values"]
    with pytest.raises(ArtefactError, match="--resume"):
        run("1-2")
    watched = {path: path.stat().st_mtime_ns for path in out.glob("seed-*/rounds/*/record.json")}
    both = run("1-2", "--resume")["groups"][0]["figures"]["accuracy_federated"]
    assert both["values"][:1] == values
    assert both["spread"] is not None
    assert {path: path.stat().st_mtime_ns for path in watched} == watched
    kept = [json.loads((out / f"seed-{n}" / "summary.json").read_text("utf-8")) for n in (1, 2)]
    assert [each["seed"] for each in kept] == [1, 2]
    markers = [json.loads((out / f"seed-{n}/experiment.json").read_text("utf-8")) for n in (1, 2)]
    assert len({each["identity"] for each in markers}) == 1
    assert [each["accuracy_federated"] for each in kept] == both["values"]
    assert json.loads((out / "seeds.json").read_text("utf-8"))["seeds"] == [1, 2]
    with pytest.raises(PlanError, match="differs"):
        call("simulate", experiment_file, "--out", out, "--seeds", "1", "--resume", sets=[])


def test_a_sweep_runs_what_is_legal_and_goes_on(experiment_file: Path) -> None:
    """Another value and another seed later cost their own runs alone; a rank that no layer has is said."""
    out = experiment_file.parent / "swept"
    fixed = ["plan.rounds=1", "yardsticks.pooled=false", "yardsticks.alone=0"]

    def run(ranks: str, seeds: str) -> list[dict[str, Any]]:
        over = ("--over", f"plan.adapter.rank={ranks}", "--seeds", seeds)
        done = call("sweep", experiment_file, "--out", out, *over, "--json", sets=fixed)
        assert done.exit_code == 0
        return list(json.loads(done.stdout))

    first = run("2", "1")
    assert [row["seeds"] for row in first] == [[1]]
    records = {path: path.stat().st_mtime_ns for path in out.glob("*/rounds/*/record.json")}
    assert records
    both = {row["settings"]["plan.adapter.rank"]: row for row in run("2,4000", "1-2")}
    assert {path: path.stat().st_mtime_ns for path in records} == records
    assert both["2"]["seeds"] == [1, 2]
    accuracy = both["2"]["figures"]["accuracy"]
    assert accuracy["values"][:1] == first[0]["figures"]["accuracy"]["values"]
    assert accuracy["spread"] is not None
    assert "exceeds a layer" in both["4000"]["reason"]
    assert both["4000"]["seeds"] == []
    assert json.loads((out / "sweep.json").read_text("utf-8"))[0]["runs"]
    assert "adapter.rank=2" in (out / "sweep.html").read_text("utf-8")


def base_of(run: Path) -> Path:
    """The base that a run was made on."""
    marker = json.loads((run / "experiment.json").read_text())
    return (run / marker["base_folder"]).resolve()


def test_plan_check_reads_experiments_and_times_steps(
    named_file: Path,
    said: tuple[Path, Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached = base_of(said[0])
    plain = call("plan", "check", named_file, "--base", cached, "--json", sets=ODD)
    body = json.loads(plain.stdout)
    assert plain.exit_code == 0
    assert body["kind"] == "experiment"
    fields = {finding["field"] for finding in body["findings"] if finding["severity"] == "warning"}
    assert {"local.head_learning_rate", "data.test", "secrecy.exchange"} <= fields
    assert body["forecast"]["assumed_rows_per_client"] == 60
    assert body["measured"] is None
    monkeypatch.chdir(tmp_path)
    built = [f"base.folder={cached}", 'base.source=""']
    timed = json.loads(call("plan", "check", named_file, "--measure", "--json", sets=built).stdout)
    assert timed["measured"]["step"] > 0
    assert timed["simulation_seconds"]["federated"] > 0
    assert timed["forecast"]["assumed_tokens_per_second"] != 2000
    assert list((tmp_path / "runs").iterdir()) == []
    with pytest.raises(PlanError, match="nonsense"):
        call("plan", "check", named_file, sets=["plan.local.nonsense=1"])


def test_plan_check_times_steps_of_a_plan(said: tuple[Path, Result], tmp_path: Path) -> None:
    done = call(
        "plan", "check", said[0] / "plan.json", "--base", base_of(said[0]), "--measure", "--json"
    )
    body = json.loads(done.stdout)
    assert body["kind"] == "plan"
    assert body["forecast"]["assumed_tokens_per_second"] == pytest.approx(
        8 * 16 / body["measured"]["step"], abs=1
    )


@pytest.mark.slow
def test_a_seed_that_is_refused_leaves_the_others(experiment_file: Path) -> None:
    out = experiment_file.parent / "refused-seeds"
    strict = ["plan.release.parity_max_relative=1e-12", "plan.release.parity_max_absolute=1e-30"]
    with pytest.raises(FedgeError):
        call(
            "simulate",
            *(experiment_file, "--out", out, "--seeds", "1-2", "--quiet"),
            sets=[*SHORT, *strict],
        )
    body = json.loads((out / "seeds.json").read_text())
    assert body["seeds"] == [1, 2]
    assert sorted(body["refused"]) == ["1", "2"]
    history = out / "seed-1" / "metrics.jsonl"
    lines = history.read_text().splitlines(keepends=True)
    history.write_text("".join(line for line in lines if '"evaluation"' not in line))
    with pytest.raises(FedgeError):
        call(
            "simulate",
            *(experiment_file, "--out", out, "--seeds", "1-2", "--quiet", "--resume"),
            sets=[*SHORT, *strict],
        )
    assert history.read_text().count('"evaluation"') == 2  # what a kill kept from being written


@pytest.mark.slow
def test_yardsticks_that_diverge_leave_the_run(experiment_file: Path) -> None:
    out = experiment_file.parent / "diverged"
    fast = [
        "plan.local.learning_rate=1e30",
        "plan.local.head_learning_rate=1e30",
        "yardsticks.pooled=true",
    ]
    # a sum in secret clips what is too long, so that the rounds themselves go on
    fast += ["plan.secrecy.exchange=secagg", "plan.cohort.weighting=uniform"]
    fast += ["plan.cohort.size=5", "plan.cohort.quorum=3"]
    said = call("simulate", experiment_file, "--out", out, "--json", sets=[*SHORT, *fast])
    body = json.loads(said.stdout)
    assert body["accuracy_pooled"] is None
    assert body["accuracy_federated"] is not None
    assert body["rounds_verified"] == 2
    assert any(line.startswith("all data in one place: its training") for line in body["warnings"])
    assert "all data in one place: its training diverged" in said.stderr
    assert "its training diverged" in (out / "report.html").read_text("utf-8")
