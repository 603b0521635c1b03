"""Mutations are found by checks, not by chance: without its check, each of these passes unseen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import audit.budget
import audit.log_copy
import audit.records
from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit as verify
from protocol.encoding import canonical_json
from protocol.errors import FedgeError
from protocol.transparency.leaf_codec import sha256
from tests.adversaries.forger import Forger
from tests.methods import CORES
from tests.unit.audit.runs import make_run

Mutation = Callable[[Path], Trust]
PRIVATE = {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 20.0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", adapter=CORES, privacy=PRIVATE)


def a_time_in_a_record(run: Path) -> Trust:
    record = run / "rounds/0001/record.json"
    said = json.loads(record.read_text())
    said["ended_at"] += 1.0
    record.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")
    return Trust()


def another_noise(run: Path) -> Trust:
    """The coordinator claims that there was more noise, and signs it."""
    forger = Forger(run)
    index, made = forger.at("dp"), {}

    def change(leaf: Any) -> None:
        leaf["entry"]["noise"] = (9.0).hex()
        made.update(leaf["entry"])

    forger.edit(index, change)
    forger.resubject(index, {"privacy.jsonl": sha256(canonical_json(made))})
    forger.sign()
    (run / "privacy.jsonl").unlink()  # its own file would contradict it
    return Trust()


def another_history(run: Path) -> Trust:
    """A log that is right in itself, and not the one that was shown before."""
    kept = (run / "log/checkpoint").read_text()
    forger = Forger(run)
    forger.edit(forger.at("round-open"), lambda leaf: leaf.update(code="1" * 64))
    forger.sign()
    return Trust(kept=kept)


def found(run: Path, trust: Trust) -> bool:
    try:
        report = verify(Folder(run), trust)
    except FedgeError:
        return True
    return report.failed


@pytest.mark.parametrize(
    ("mutation", "module", "check", "without"),
    [
        (
            a_time_in_a_record,
            audit.records,
            "read_subject",
            lambda source, placed, name: source.read(name),
        ),
        (another_noise, audit.budget, "_check_line", lambda *_: None),
        (another_history, audit.log_copy, "_check_growth", lambda *_: None),
    ],
)
def test_a_mutation_is_found_by_its_check_alone(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    mutation: Mutation,
    module: Any,
    check: str,
    without: Callable[..., Any],
) -> None:
    assert not found(run, Trust())
    trust = mutation(run)
    assert found(run, trust)
    monkeypatch.setattr(module, check, without)
    assert not found(run, trust)
