"""A whole run where Python's preferred encoding is ASCII, with labels, texts and a folder that are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_imports import ROOT

ASCII = {
    "LC_ALL": "C",
    "LANG": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONPATH": str(ROOT),
}
NAMES = {"lamp": "L\u00e4mpchen", "music": "\u97f3\u4e50", "heating": "chauffage \u00e9t\u00e9", "door": "\u0434\u0432\u0435\u0440\u044c"}  # fmt: skip


def fedge(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "fedge", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **ASCII},
        capture_output=True,
    )


def test_the_environment_is_what_it_claims() -> None:
    code = "import locale, sys; print(locale.getpreferredencoding(False), sys.stdout.encoding)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **ASCII}, capture_output=True
    )
    assert done.stdout.decode().split()[0].upper() in ("ANSI_X3.4-1968", "US-ASCII", "ASCII")
    assert "utf" not in done.stdout.decode().lower()


def test_messages_beyond_ascii_are_escaped_and_end_nothing(tmp_path: Path) -> None:
    rows = tmp_path / "\u00fcber.jsonl"
    rows.write_text(
        '{"text": "a", "label": "\u00c9t\u00e9"}\n{"text": "b", "label": "\u00e9t\u00e9"}\n',
        "utf-8",
    )
    done = fedge("init", "--experiment", rows, "--out", tmp_path / "e.toml")
    assert done.returncode == 4, done.stderr
    assert b"differ only by case" in done.stderr
    assert "über.jsonl".encode() in done.stderr


@pytest.mark.slow
def test_a_whole_run(experiment_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "\u00fcber"  # the source, too, has a name beyond ASCII
    folder.mkdir()
    for name in ("train", "test"):
        text = (experiment_file.parent / f"{name}.jsonl").read_text("utf-8")
        for label, other in NAMES.items():
            text = text.replace(f'"{label}"', json.dumps(other, ensure_ascii=False))
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    file = folder / "tiny.toml"
    file.write_text(experiment_file.read_text("utf-8"), "utf-8")
    secret = ["--set", "plan.secrecy.exchange=secagg", "--set", "plan.cohort.size=6"]
    secret += ["--set", "plan.cohort.quorum=6", "--set", "plan.cohort.weighting=uniform"]
    done = fedge(
        *("simulate", file, "--out", folder / "run", "--json", "--quiet"),
        *("--set", "plan.rounds=2", *secret),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout)
    assert summary["audit"] == "ok"
    base, adapter, rows = summary["base"], summary["adapter"], folder / "run" / "test.jsonl"
    released = fedge("release", folder / "run", "--base", base, "--rows", rows, "--json")
    assert released.returncode == 0, released.stderr[-2000:]
    assert set(json.loads(released.stdout)["labels"]) == set(NAMES.values())
    answers = fedge(
        *("edge", "infer", "--base", base, "--adapter", adapter, "--file", rows, "--json")
    )
    assert {one["label"] for one in json.loads(answers.stdout)} <= set(NAMES.values())
    for shown in (
        fedge("edge", "infer", "a lamp", "--base", base, "--adapter", adapter),
        fedge("report", folder / "run"),
        fedge("audit", "verify", folder / "run", "--quiet"),
        fedge("simulate", file, "--out", folder / "run", "--quiet", "--resume", "--set", "plan.rounds=2",
              *secret),
    ):  # fmt: skip
        assert shown.returncode == 0, shown.stderr[-2000:]
