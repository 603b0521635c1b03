"""The same apps through Flower's Ray simulation give the same adapter, bit for bit. Needs ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.run import simulate

ROOT = Path(__file__).resolve().parent.parent.parent
# A process of its own: Ray's helpers end with it, and torch's threads are as in the other run.
OVER_RAY = """
import json, sys
import torch
torch.set_num_threads(1)
import client.app
from server.app import make_app
from simulations.ray_backend import simulate_over_ray
config = json.loads(sys.argv[1])
simulate_over_ray(make_app(), client.app.app, clients=6, run_config=config)
"""


@pytest.mark.slow
def test_ray_gives_the_same_adapter(experiment_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    import torch

    torch.set_num_threads(1)
    overrides = ["plan.rounds=2", "yardsticks.pooled=false", "yardsticks.alone=0"]
    here = experiment_file.parent / "in-process"
    experiment = load_experiment(experiment_file, overrides)
    summary = simulate(experiment, here, resume=False, progress=NoProgress())
    marker = json.loads((here / "experiment.json").read_text())
    config = {
        "plan": str(here / "plan.json"),
        "base": str((here / marker["base_folder"]).resolve()),
        "run": str(tmp_path / "ray"),
        "data-pattern": str(here / "clients" / "client-{partition:04d}.jsonl"),
        "threads": 1,
    }
    done = subprocess.run(
        [sys.executable, "-c", OVER_RAY, json.dumps(config)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "ray" / "rounds" / "0002" / "record.json").read_text())
    assert record["adapter_out"] == summary.adapter_digest
