"""Sites whose SuperNode is killed after every message, through the real apps in a simulation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from protocol.errors import RoundError
from simulations.experiment import load_experiment
from simulations.grid import InProcessGrid
from simulations.progress import NoProgress
from simulations.run import simulate

SETTINGS = [
    "population.clients=4",
    "plan.secrecy.exchange=secagg",
    "plan.cohort.weighting=uniform",
    "plan.cohort.size=4",
    "plan.cohort.quorum=3",
    "plan.cohort.attempts=1",
    "plan.rounds=2",
    "yardsticks.pooled=false",
    "yardsticks.alone=0",
]


def run(file: Path, name: str) -> str:
    """The digest of the last adapter."""
    out = file.parent / name
    simulate(load_experiment(file, SETTINGS), out, resume=False, progress=NoProgress())
    record = json.loads((out / "rounds" / "0002" / "record.json").read_text())
    assert len(record["used"]) == 4
    return str(record["adapter_out"])


def test_with_files_of_their_own_they_lose_nothing(
    experiment_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    undisturbed = run(experiment_file, "undisturbed")
    whole = InProcessGrid._context

    def restarted(self: InProcessGrid, node: int) -> Context:
        context = whole(self, node)
        context.state = RecordDict()
        return context

    monkeypatch.setattr(InProcessGrid, "_context", restarted)
    with pytest.raises(RoundError):
        run(experiment_file, "restarted")

    def remembering(self: InProcessGrid, node: int) -> Context:
        context = restarted(self, node)
        context.node_config["sessions"] = str(tmp_path / f"{node}")
        return context

    monkeypatch.setattr(InProcessGrid, "_context", remembering)
    assert run(experiment_file, "remembering") == undisturbed
