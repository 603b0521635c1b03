"""Differential privacy through the real apps: noise, records, the budget that stops a run."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import PrivacyError
from protocol.privacy.ledger import parse_entries
from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.report import write_report
from simulations.run import simulate

QUICK = ["yardsticks.pooled=false", "yardsticks.alone=0", "plan.rounds=3"]
COMMON = [*QUICK, "plan.cohort.weighting=uniform", "plan.rule.name=first"]
DISTRIBUTED = [
    *COMMON,
    "plan.secrecy.exchange=secagg",
    "plan.cohort.size=6",
    "plan.cohort.quorum=4",
    "plan.privacy.mechanism=distributed",
    "plan.privacy.noise_multiplier=2.0",
    "plan.privacy.epsilon=20.0",
]
CENTRAL = [
    *COMMON,
    "plan.cohort.size=3",
    "plan.cohort.quorum=1",
    "plan.privacy.mechanism=central",
    "plan.privacy.sampling=0.2",
    "plan.privacy.noise_multiplier=2.0",
    "plan.privacy.epsilon=20.0",
]


def run(file: Path, name: str, settings: list[str]) -> Path:
    out = file.parent / name
    simulate(load_experiment(file, settings), out, resume=False, progress=NoProgress())
    return out


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def records(out: Path) -> list[Any]:
    return [read(path) for path in sorted(out.glob("rounds/*/record.json"))[1:]]


def test_every_record_says_what_was_spent_and_the_report_shows_it(experiment_file: Path) -> None:
    out = run(experiment_file, "private", DISTRIBUTED)
    spent = [record["privacy"] for record in records(out)]
    assert [each["sums"] for each in spent] == [1, 2, 3]
    assert 0 < spent[0]["epsilon"] < spent[1]["epsilon"] < spent[2]["epsilon"] <= 20
    assert {(e["noise_multiplier"], e["clip"], e["delta"]) for e in spent} == {(2.0, 1.0, 1e-6)}
    assert all(record["metrics"] == {} for record in records(out))
    summary = read(out / "summary.json")
    assert summary["epsilon"] == spent[-1]["epsilon"]
    page = write_report(out).read_text()
    folder = out / "rounds" / "0003" / "adapter"
    assert read(folder / "release.json")["exchange"] == "secagg"
    card = (folder / "README.md").read_text()
    assert "INSECURE" not in card
    assert f"epsilon {spent[-1]['epsilon']:.3f} at delta 1e-06" in card
    assert f"{spent[-1]['epsilon']:.3f}" in page
    assert "Privacy spent" in page
    said = "each of 6 clients, never of fewer than 4, with the clients' noise in it"
    assert said in unescape(page)
    assert "no metrics at all" in page
    ledger = parse_entries((out / "privacy.jsonl").read_text(), source="ledger")
    assert [(e.round, len(e.participants)) for e in ledger] == [(1, 6), (2, 6), (3, 6)]
    own = sorted((out / "clients").glob("*.ledger.jsonl"))
    assert len(own) == 6  # each client keeps its own account
    for path in own:
        mine = parse_entries(path.read_text(), source=str(path))
        assert [(e.round, e.rho) for e in mine] == [(e.round, e.rho) for e in ledger]


def test_the_budget_stops_the_run_and_the_last_adapter_stands(experiment_file: Path) -> None:
    settings = [*DISTRIBUTED, "plan.privacy.rounds_per_client=1", "plan.cohort.size=4"]
    out = experiment_file.parent / "stopped"
    experiment = load_experiment(experiment_file, settings)
    with pytest.raises(PrivacyError, match="budget allows no more"):
        simulate(experiment, out, resume=False, progress=NoProgress())
    done = records(out)
    assert 1 <= len(done) < 3
    assert (out / "rounds" / f"{len(done):04d}" / "adapter" / "adapter_model.safetensors").is_file()
    ledger = parse_entries((out / "privacy.jsonl").read_text(), source="ledger")
    names = [name for entry in ledger for name in entry.participants]
    assert len(names) == len(set(names))  # nobody twice
    with pytest.raises(PrivacyError):  # and asked again, the same answer
        simulate(experiment, out, resume=True, progress=NoProgress())


def test_central_noise_counts_every_round_for_everybody(experiment_file: Path) -> None:
    out = run(experiment_file, "central", CENTRAL)
    spent = [record["privacy"] for record in records(out)]
    assert spent[-1]["mechanism"] == "central"
    assert 0 < spent[0]["epsilon"] < spent[-1]["epsilon"]
    assert all(record["metrics"] == {} for record in records(out))
    said = read(out / "summary.json")["insecure"]
    assert any("not devices from the coordinator" in line for line in said)
    assert len(spent) == 3  # a sample of nobody is a round of noise, never drawn again
    assert not list(out.glob("rounds/*.attempt*.json"))
