"""The commands and programs of the guide's section about opening a release, as they stand, in order."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.run import simulate
from tests.integration.test_walkthrough import with_fedge

ROOT = Path(__file__).resolve().parents[2]
SECTION = re.compile(r"^## Opening what was released\n(.*?)^## ", re.S | re.M)
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.S | re.M)


def blocks() -> list[tuple[str, str]]:
    """(language, text) of the section's blocks."""
    section = SECTION.search((ROOT / "docs" / "guide.md").read_text("utf-8"))
    assert section
    return [(kind, text) for kind, text in BLOCK.findall(section[1])]


@pytest.mark.slow
def test_every_block_runs_and_the_engines_print_nothing(
    experiment_file: Path, tmp_path: Path
) -> None:
    changes = ["plan.rounds=1", "yardsticks.alone=0", "yardsticks.pooled=false"]
    run = experiment_file.parent / "opening"
    summary = simulate(
        load_experiment(experiment_file, changes), run, resume=False, progress=NoProgress()
    )
    here = tmp_path / "here"
    shutil.copytree(run, here / "runs" / "home")
    shutil.copytree(summary.base, here / "bases" / "mine")
    shutil.copy(run / "test.jsonl", here / "held-out.jsonl")
    environment = with_fedge(tmp_path / "bin")
    outside = {k: v for k, v in environment.items() if k != "PYTHONPATH"}
    labels = json.loads((run / "plan.json").read_text())["task"]["labels"]
    said = []
    for kind, text in blocks():
        command = ["bash", "-euo", "pipefail", "-c", text]
        if kind == "python":
            (here / "program.py").write_text(text)
            command = [sys.executable, "-I", "program.py"]
        result = subprocess.run(
            command,
            cwd=here,
            env=environment if kind == "sh" else outside,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, (text, result.stderr[-3000:])
        if kind == "python":
            said.append(result.stdout)
            assert any(label in result.stdout for label in labels)
            if "onnxruntime" in text:
                assert result.stderr == ""
    assert len(said) == 4
    assert said[2] == said[3]  # the merged file and the adapter on the base
