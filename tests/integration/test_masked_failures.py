"""A device whose rows cannot be used, through the real apps: the record counts it and names nobody. (P-4.4)"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

import client.app
from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from protocol import wire
from protocol.encoding import vector_digest
from protocol.wire import Instruction, from_record
from simulations.evaluation import Evaluator
from simulations.experiment import load_experiment
from simulations.grid import InProcessGrid
from simulations.prepare import Prepared, prepare
from simulations.progress import NoProgress
from simulations.records import round_records
from simulations.run import run_federated
from simulations.timings import Timings
from tests.integration.test_secret_rounds import SECRET

PRIVATE = "a private sentence"


@pytest.fixture
def prepared(experiment_file: Path, request: pytest.FixtureRequest) -> Prepared:
    settings = [*SECRET, "plan.rounds=2", "plan.evaluation.holdout=0.2"]
    out = experiment_file.parent / f"masked-{request.node.name}"
    return prepare(
        load_experiment(experiment_file, settings), out, resume=False, progress=NoProgress()
    )


def train(prepared: Prepared) -> list[dict[str, Any]]:
    evaluator = Evaluator(prepared.plan, prepared.base, prepared.test_file)
    run_federated(prepared, evaluator, timings=Timings(prepared.out), progress=NoProgress())
    return [record for record in round_records(prepared.out) if record["round"]]


def test_a_round_with_failures_is_a_round_like_others(
    prepared: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    row = json.dumps({"text": PRIVATE, "label": "no such label"})
    prepared.client_file(1).write_text(row + "\n")
    prepared.client_file(4).unlink()
    with caplog.at_level(logging.WARNING):
        records = train(prepared)
    for record in records:
        assert (record["failures"], record["clipped_share"]) == (2, 0.0)
        assert (len(record["used"]), record["dropped"], record["lost"]) == (6, [], {})
        assert not any(word in json.dumps(record) for word in ("label", PRIVATE, "no such"))
    assert caplog.text.count("2 of 6 clients failed") == 2
    assert caplog.text.count("client-0001.jsonl: line 1: the label") == 2  # its owner's own log
    assert PRIVATE not in caplog.text
    assert not audit(Folder(prepared.out), Trust()).failed


@pytest.mark.parametrize(
    ("field", "value", "cause"),
    [
        ("adapter_digest", None, "log.adapter"),
        ("base", "0" * 64, "names base"),
    ],
)
def test_what_hangs_on_the_message_alone_is_refused_in_clear(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, field: str, value: Any, cause: str
) -> None:
    """Nothing was read for it: the operator may know what is wrong with the instruction."""
    send = InProcessGrid.push_messages

    def altered(self: InProcessGrid, messages: Any) -> Any:
        messages = list(messages)
        for message in messages:
            _alter(message, field, value)
        return send(self, messages)

    monkeypatch.setattr(InProcessGrid, "push_messages", altered)
    monkeypatch.setattr(client.app, "_contribution", lambda *_: pytest.fail("it trained"))
    with pytest.raises(Exception, match="missed its quorum"):
        train(prepared)
    failed = json.loads(sorted((prepared.out / "rounds").glob("0001.attempt*.json"))[0].read_text())
    assert len(failed["dropped"]) == 6
    assert all(cause in each["detail"] for each in failed["dropped"]), failed["dropped"]


def _alter(message: Message, field: str, value: Any) -> None:
    """The instruction of every phase; where ``value`` is None, the adapter instead."""
    content = message.content
    if wire.INSTRUCTION not in content:
        return
    told = from_record(Instruction, dict(content[wire.INSTRUCTION]))
    if value is None:
        value = vector_digest(np.zeros(3, np.float32))
    changed = replace(told, **{field: value})
    content[wire.INSTRUCTION].update(wire.to_record(changed))
