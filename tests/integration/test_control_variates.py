"""Whole runs whose clients correct their training: killed in a round, they end as one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import client.worker
from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.run import simulate
from simulations.summary import Summary
from tests.tiers import one_by_default

ROUNDS, CLIENTS = 3, 4


def run(file: Path, name: str, exchange: str, scaffold: float, *, resume: bool = False) -> Summary:
    settings = [
        "yardsticks.pooled=false",
        "yardsticks.alone=0",
        f"plan.rounds={ROUNDS}",
        f"plan.cohort.size={CLIENTS}",
        f"plan.cohort.quorum={CLIENTS}",
        "plan.cohort.weighting=uniform",
        "plan.rule.name=mean",
        f"plan.secrecy.exchange={exchange}",
        f"plan.local.scaffold={scaffold}",
    ]
    experiment = load_experiment(file, settings)
    return simulate(experiment, file.parent / name, resume=resume, progress=NoProgress())


@pytest.mark.parametrize("exchange", one_by_default("secagg", ["plain", "secagg"]))
def test_a_round_that_is_asked_for_again_is_corrected_as_before(
    experiment_file: Path, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its last round: three clients have kept what they did by then, in secret all are asked anew."""
    plain = run(experiment_file, f"without-{exchange}", exchange, 0.0)
    whole = run(experiment_file, f"whole-{exchange}", exchange, 0.5)
    assert whole.adapter_digest != plain.adapter_digest
    train, calls = client.worker.train, 0

    def interrupted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == ROUNDS * CLIENTS:
            raise KeyboardInterrupt
        return train(*arguments, **named)

    monkeypatch.setattr(client.worker, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(experiment_file, f"killed-{exchange}", exchange, 0.5)
    out = experiment_file.parent / f"killed-{exchange}"
    assert not (out / f"rounds/{ROUNDS:04d}").is_dir()
    files = sorted((out / "clients").glob("*.controls/*.safetensors"))
    assert files
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    again = run(experiment_file, f"killed-{exchange}", exchange, 0.5, resume=True)
    assert again.adapter_digest == whole.adapter_digest
