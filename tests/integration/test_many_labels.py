"""150 labels of which each client knows a tenth: a small version of `benchmarks/many_labels.py`, to its page."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_small_version_runs_to_its_page(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/many_labels.py", "--out", str(tmp_path / "out")]
    small = ["--rows", "8", "--rounds", "2", "--json"]
    done = subprocess.run([*command, *small], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    known = defaultdict(set)
    for line in (tmp_path / "out" / "rows.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        known[row["device"]].add(row["label"])
    assert len(set().union(*known.values())) == 150
    assert [len(labels) for labels in known.values()] == [15] * 20
    body = json.loads(done.stdout)
    assert [group["runs"][0].rpartition("/")[2] for group in body["groups"]] == [
        "default",
        "fedavgm",
    ]
    for group in body["groups"]:
        assert {"accuracy_federated", "loss_federated"} <= group["figures"].keys()
    assert {"accuracy_pooled", "loss_pooled"} <= body["groups"][0]["figures"].keys()
    page = (tmp_path / "out" / "compare.html").read_text("utf-8")
    assert "Test loss, nats a row" in page
    assert "all in one place" in page
