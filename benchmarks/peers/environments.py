"""Environments of their own for peers whose dependencies are not fedge's: a virtual one from a pinned list beside this."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


class NoEnvironmentError(Exception):
    """A peer has none; the text says what pip said last."""


def python_of(peer: str, out: Path) -> Path:
    """The interpreter of ``peer``'s environment under ``out``, which is made from ``<peer>.txt`` unless it is there.

    Raises NoEnvironmentError where it cannot be made: no registry, or a version that is not for this Python.
    """
    pins, folder = HERE / f"{peer}.txt", out / f"environment-{peer}"
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    if installed.exists() and installed.read_bytes() == pins.read_bytes():
        return python
    shutil.rmtree(folder, ignore_errors=True)  # cut off, or of other pins
    print(f"installing {pins.name} into {folder}", file=sys.stderr)
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(python), "-m", "pip", "install", "--quiet", "-r", str(pins)])
    shutil.copyfile(pins, installed)
    return python


def _run(command: list[str]) -> None:
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)  # pip would take what that names for installed
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise NoEnvironmentError(" / ".join(said) or f"{command[:4]} ended with {done.returncode}")
