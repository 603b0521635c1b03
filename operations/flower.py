"""How Flower's programs are started here: a home of their own, nobody called, nothing installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import protocol
from operations.proxies import spare_loopback

ROOT = Path(protocol.__file__).resolve().parent.parent  # where our packages are imported from


def environment(home: Path, programs: Path) -> dict[str, str]:
    """The environment of Flower's processes; they find only what is in ``programs``."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FLWR_") and name != "PYTHONHOME"
    }
    spare_loopback(inherited)
    return {
        **inherited,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        "HF_HUB_OFFLINE": "1",
        "PATH": str(programs),
        "PYTHONPATH": str(ROOT),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",  # whatever the locale: labels and names of files are in any script
    }


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs one of our modules."""
    return [sys.executable, "-P", "-m", name, *arguments]


def work_of(address: str, authority: Path, secret: Path) -> list[str]:
    """Arguments for a process that asks the Runtime API at ``address`` for work."""
    return [
        *("--runtime-api-address", address),
        *("--root-certificates", str(authority)),
        *("--superexec-auth-secret-file", str(secret)),
    ]
