"""Every PEFT method from rows to an audited release: summed in secret, released, audited, on a device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from edge_runtime.base import EdgeBase
from edge_runtime.runtime import EdgeRuntime
from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.run import simulate
from tests.methods import SORTING, adapter_of

SECRET = ["plan.secrecy.exchange=secagg", "plan.cohort.weighting=uniform", "plan.cohort.quorum=3"]
SHORT = ["plan.rounds=2", "yardsticks.pooled=true", "yardsticks.alone=0", "base.scales=true"]


def toml(value: object) -> str:
    """A value as TOML has it, tables in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(own)}" for key, own in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


@pytest.mark.slow
@pytest.mark.parametrize("name", SORTING)
def test_from_rows_to_a_device(experiment_file: Path, name: str) -> None:
    settings = [f"plan.adapter.{key}={toml(value)}" for key, value in adapter_of(name).items()]
    experiment = load_experiment(experiment_file, [*SHORT, *SECRET, *settings])
    out = experiment_file.parent / f"method-{name}"
    summary = simulate(experiment, out, resume=False, progress=NoProgress())
    assert summary.parity_max_relative <= 1e-4
    assert audit(Folder(out), Trust()).verdict == "ok"
    runtime = EdgeRuntime(EdgeBase.open(Path(summary.base)))
    runtime.activate(Path(summary.adapter))
    assert runtime.logits(["one text", "another"]).shape == (2, 4)
