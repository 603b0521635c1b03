"""A run folder with what a report needs, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.report_files import EVIL, record


@pytest.fixture
def run(tmp_path: Path) -> Path:
    plan = {
        "name": "demo",
        "rounds": 2,
        "task": {"labels": [EVIL]},
        "rule": {"name": "mean"},
        "privacy": {"mechanism": "none"},
    }
    files: dict[str, Any] = {
        "plan.json": plan,
        "rounds/0000/record.json": {"round": 0},
        "rounds/0001/record.json": record(1, [{"client": EVIL, "reason": "late", "detail": EVIL}]),
        "rounds/0002/record.json": record(
            2, [{"client": "c", "reason": "error", "detail": "line 3"}]
        ),
        "evaluations.json": {
            "test": [{"round": 1, "accuracy": 0.4321}, {"round": 2, "accuracy": 0.5432}]
        },
        "yardsticks.json": {
            "pooled": {"accuracy": 0.6543},
            "alone": {"mean": 0.1234, "per_client": {"a": 0.1, "b": 0.15}},
        },
        "timings.json": {"parts": {}, "rounds": {"1": 3.25, "2": 4.75}},
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return tmp_path
