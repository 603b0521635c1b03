"""A newcomer pastes the commands of a page into a new folder, in order, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PORTS = (9440, 9441, 9442, 8080, 8765)
MOST_S = 1500


def commands(page: str) -> str:
    """The page's shell blocks, one after the other."""
    text = (DOCS / page).read_text("utf-8")
    return "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, re.S | re.M))


def is_free(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def with_fedge(folder: Path) -> dict[str, str]:
    """An environment in which `fedge` and `python3` are these."""
    folder.mkdir()
    for name, arguments in (("fedge", "-P -m fedge "), ("python3", "")):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        program.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="the page uses curl")
def test_every_command_of_the_walkthrough_in_a_new_folder(tmp_path: Path) -> None:
    page = commands("walkthrough.md")
    assert page.count("fedge ") > 20
    if taken := [port for port in PORTS if not is_free(port)]:
        pytest.skip(f"the page uses ports that are taken here: {taken}")
    here = tmp_path / "new"
    here.mkdir()
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-x", "-c", page],
            cwd=here,
            env=with_fedge(tmp_path / "bin"),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(MOST_S)
        finally:
            with suppress(ProcessLookupError):  # it, and what it left in the background
                os.killpg(process.pid, signal.SIGKILL)
            for folder in [*here.glob("ward-*"), here / "coordinator"]:
                stop_what_is_left(folder, with_fedge(tmp_path / f"bin-{folder.name}"))
    said = log.read_text(errors="replace")
    assert code == 0, said[-3000:]
    assert '"label":"weather_later"' in said
    assert "verdict: ok" in said
    identities = re.findall(
        r"identity ([0-9a-f]{16})", said
    )  # of each site by itself and by the operator
    assert len(identities) == 6
    assert identities[0::2] == identities[1::2]
    record = json.loads((here / "runs/wards/rounds/0003/record.json").read_text())
    assert record["used"] == ["ward-0", "ward-1", "ward-2"]


def stop_what_is_left(folder: Path, environment: dict[str, str]) -> None:
    """After a failure in the middle."""
    if (folder / "state").is_dir():
        kind = "coordinator" if folder.name == "coordinator" else "client"
        subprocess.run(["fedge", kind, "stop", folder], env=environment, capture_output=True)


@pytest.mark.slow
def test_a_newcomers_own_rows_and_model(tmp_path: Path) -> None:
    page = commands("newcomer.md")
    assert page.count("fedge ") > 8
    here = tmp_path / "new"
    here.mkdir()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", page],
        cwd=here,
        env=with_fedge(tmp_path / "bin") | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=MOST_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = " ".join(done.stdout.split())
    assert said.count("verdict: ok") == 2  # of the run, and of the one before
    assert "plain onnxruntime: ['billing', 'delivery']" in said
    assert 'plan.rule.name │ "alternating" │ "mean"' in said
    assert (here / "compare.html").read_text("utf-8").count("<svg") >= 1
    for folder in ("usual/seed-1", "usual/seed-2", "mean/seed-1", "mean/seed-2", "longer"):
        summary = json.loads((here / "runs" / folder / "summary.json").read_text())
        assert summary["accuracy_federated"] > 0.8
        assert summary["rounds_verified"] == 2
    for kind in ("hf", "onnx"):
        parity = json.loads((here / "runs/longer-merged" / kind / "parity.json").read_text())
        assert parity["label_agreement"] == 1.0
