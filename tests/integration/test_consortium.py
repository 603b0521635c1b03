"""A whole consortium as processes: rounds, audit, release, devices; and a run that survives `kill -9`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedge.devices import devices
from fedge.operations.coordinator import Coordinator
from fedge.operations.overview import look
from simulations.experiment import load_experiment

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    "population.clients=4",
    "yardsticks.pooled=false",
    "yardsticks.alone=0",
    "plan.rounds=2",
    "plan.cohort.size=4",
    "plan.cohort.quorum=3",
    "plan.cohort.weighting=uniform",
    "plan.secrecy.exchange=secagg",
]


def processes_of(folder: Path) -> list[str]:
    """Command lines that name the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and "pytest" not in line:
            found.append(line)
    return found


@pytest.mark.slow
def test_from_enrolment_to_devices_that_answer(experiment_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "devices"
    experiment = load_experiment(experiment_file, SETTINGS)
    summary = devices(experiment, out, floor=0.05, say=lambda text: None)
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["rounds_finished"] == 2
    assert summary["adapter_sha256"] == summary["adapter_sha256_in_process"]
    assert summary["audit_verified"]
    assert summary["devices_serving"] == 2
    assert processes_of(out) == []
    overview = look(Coordinator.open(out / "coordinator"))
    assert [run.state for run in overview.runs] == ["finished"]
    assert overview.runs[0].replies == 8
    for log in out.rglob("log.jsonl"):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert lines
        assert {"time", "component", "level", "message"} <= set(lines[0])
    secrets = [p.read_bytes() for p in (out / "sites").glob("*/keys/*.key")]
    rows = (out / "in-process" / "clients" / "client-0000.jsonl").read_text().splitlines()[:20]
    texts = [json.loads(row)["text"].encode() for row in rows]
    for log in out.rglob("state/*"):
        if log.is_file() and log.suffix in (".jsonl", ".json", ".log"):
            content = log.read_bytes()
            assert not any(secret.strip()[:48] in content for secret in secrets)
            assert not any(text in content for text in texts if len(text) > 12)


@pytest.mark.slow
def test_a_short_campaign_of_kills(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--json"]
    out = tmp_path / "faults"
    done = subprocess.run(
        [*script, "--rounds", "3", "--kills", "6", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert (found["exit_code"], found["rounds_finished"]) == (0, 3)
    assert found["adapter_always_valid"]
    assert found["audit"] == "ok"
    assert found["kills"] == 6
    assert processes_of(out) == []
