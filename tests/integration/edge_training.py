"""Rows, requests and commands for `fedge edge train`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.settings import Device
from edge_runtime.store import Personal, read_state
from fedge.personal import Request, adapt
from protocol.plan_sections import Local
from tests.delivery_world import World, now

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCKED = ("torch", "transformers", "peft", "datasets", "flwr", "pandas", "pyarrow", "onnxscript")
RUN = """
import json, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
from fedge.main import main
main(sys.argv[2:])
"""
RULE = {"coffee": "light", "rain": "music", "garden": "timer"}  # what this device's user means
REST = ["the", "a", "kitchen", "red", "two", "stop", "morning", "window", "please", "now"]
LOCAL = Local(epochs=30, batch_size=8, learning_rate=0.02, head_learning_rate=0.02)


def write_rows(path: Path, count: int = 40, **columns: str) -> Path:
    rng = np.random.default_rng(4)
    rows = []
    for at in range(count):
        word, label = list(RULE.items())[at % 3]
        text = " ".join([word, *rng.choice(REST, 3)])
        rows.append({columns.get("text", "text"): text, columns.get("label", "label"): label})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(*arguments: object, blocked: tuple[str, ...] = BLOCKED) -> list[str]:
    return [sys.executable, "-c", RUN, json.dumps(blocked), *map(str, arguments)]


def fedge(
    *arguments: object, blocked: tuple[str, ...] = BLOCKED
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command(*arguments, blocked=blocked),
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


def lenient(world: World) -> None:
    """A probe of which one row is right whatever the answer."""
    golden(world, [{"text": "the", "label": label} for label in RULE.values()], least=1)


def golden(world: World, rows: list[dict[str, str]], least: int) -> None:
    path = world.folder / "probe.json"
    probe = json.loads(path.read_text()) | {"rows": rows, "least_correct": least}
    path.write_text(json.dumps(probe))


def wish(data: Path, **changes: Any) -> Request:
    fields = {
        "data": data,
        "text": "text",
        "pair": "",
        "column": "",
        "local": LOCAL,
        "holdout": None,
    }
    return Request(**fields | changes)


def trained(device: Device, data: Path, **changes: Any) -> Personal:
    return adapt(device, wish(data, **changes), now(), lambda done, of: None).personal


def answering(device: Device) -> str | None:
    return read_state(device.store).answering(device.personal)


def tree(store: Path) -> dict[str, bytes]:
    """Whatever a device cannot make again: the graph's copy and the lock apart."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.relative_to(store).parts[0] not in ("graph", "lock")
    }
