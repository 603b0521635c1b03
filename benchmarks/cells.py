"""One resumable run of `fedge simulate` for the accuracy tables: a finished one is not run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def summary_of(experiment: str, folder: Path, settings: Sequence[str]) -> dict[str, Any]:
    """``summary.json`` of the run in ``folder``; run, or resumed, unless it is there."""
    summary = folder / "summary.json"
    if not summary.exists():
        command = [sys.executable, "-m", "fedge", "simulate", experiment, "--out", str(folder)]
        command += [part for setting in settings for part in ("--set", setting)]
        if folder.exists():
            command.append("--resume")
        done = subprocess.run(
            [*command, "--json"],
            cwd=ROOT,
            env=os.environ | ONE_THREAD,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = f"{done.stdout.strip()} {done.stderr.strip()}"
            raise SystemExit(f"{folder.name}: {said}")
        print(f"done: {folder.name}", file=sys.stderr, flush=True)
    return dict(json.loads(summary.read_text()))
