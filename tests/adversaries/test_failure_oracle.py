"""A coordinator that learns who holds what from who fails: what it gets back has one shape. (P-4.4)

Once a client has checked the coordinator's message, its rows decide whether training works. On the code
before, a refusal named the clients whose training had failed, without a sum being opened.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from base_model.verify import read_manifest
from client.job import Job, contribution
from protocol.encoding import vector_digest
from protocol.errors import FedgeError, MachineError
from protocol.exchange import Contribution, Phase
from protocol.layout import Tensors
from protocol.recipe import Recipe, initial_adapter
from protocol.tasks.classification import METRICS
from protocol.transparency.note import KeyType, VerifierKey
from tests.tiny_model import WORDS
from tests.unit.client.secret_cohort import Coordinator

LABELS = ["light", "music", "timer"]
HOLDERS = {"site-1", "site-3"}  # of rows with the label `timer`
PRIVATE = "a private sentence"
MODES = ["secret", "witnessed", "noisy"]
LOG = Ed25519PrivateKey.generate()


def verifier(name: str, kind: KeyType, key: Ed25519PrivateKey) -> str:
    return VerifierKey(name=name, type=kind, public=key.public_key().public_bytes_raw()).encode()


def sections(mode: str) -> dict[str, Any]:
    if mode == "noisy":
        return {"privacy": {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 1e6}}
    if mode == "witnessed":
        witness = verifier("w.example", KeyType.COSIGNATURE, Ed25519PrivateKey.generate())
        log = verifier("log.example/run", KeyType.ED25519, LOG)
        return {"audit": {"log": log, "witnesses": [witness], "witness_quorum": 1}}
    return {}


class Cohort(Coordinator):
    """Five sites in the plan's mode, up to their masked vectors."""

    def __init__(self, folder: Path, mode: str, **others: Any) -> None:
        self.mode = mode
        self.log_key = LOG if mode == "witnessed" else None
        super().__init__(folder, **sections(mode), **others)

    def advertise(self) -> bytes:
        close = self.core.close_adverts
        if self.mode == "witnessed":
            self.core.close_adverts = lambda asked: close(asked, alive_index=7)  # type: ignore[method-assign,assignment,misc]
        return super().advertise()

    def answers(self) -> dict[str, tuple[str, int]]:
        """By site: what the coordinator sees of its answer. A vector has to be one that it accepts."""
        shapes = {}
        for one, box in self.share().items():
            try:
                reply = self.ask(one, Phase.MASK, box)
                self.core.receive_masked(one, reply)
                shapes[self.members[one].name] = "vector", len(reply)
            except Exception as error:  # whatever it is, the app makes a refusal of it
                shapes[self.members[one].name] = str(error), 0
        return shapes


class TrainingCohort(Cohort):
    """The sites train for real, on rows of their own; the adapter is the coordinator's choice, as is its log."""

    def __init__(self, folder: Path, mode: str, base: Path, **others: Any) -> None:
        self.base, self.folder, manifest = base, folder, read_manifest(base)
        plan = {
            "base": {"fingerprint": manifest.fingerprint},
            "task": {"labels": LABELS, "max_length": 16},
            "adapter": {"rank": 2, "alpha": 4.0},
            "rule": {"name": "first"},
            **others,
        }
        super().__init__(folder, mode, **plan)
        recipe = Recipe(plan=self.plan, manifest=manifest)
        self.layout, self.sent = recipe.layout, recipe.sent_layout
        self.start = initial_adapter(self.layout, seed=self.plan.seed)
        self.trained_layout = recipe.round_layout(1)
        self.size = self.trained_layout.size
        self.members = {one: replace(m, size=self.size) for one, m in self.members.items()}
        self.begin(1)
        (folder / "plan.json").write_text(self.plan.model_dump_json())
        for number, member in enumerate(self.members.values()):
            write_rows(self.rows_of(member.name), 3 if member.name in HOLDERS else 2, seed=number)
        self.send(self.start)

    def rows_of(self, name: str) -> Path:
        return self.folder / f"{name}.rows.jsonl"

    def send(self, adapter: Tensors) -> None:
        self.adapter = self.sent.flatten({name: adapter[name] for name in self.sent.slices})
        self.instruction = replace(
            self.instruction,
            round=2,  # round 1's would be the plan's own: nobody can craft it
            base=self.plan.base.fingerprint,
            adapter_digest=vector_digest(self.layout.flatten(adapter)),
        )

    def contribution(self, one: bytes) -> Contribution:
        name = self.members[one].name
        plan = self.folder / "plan.json"
        job = Job(client=name, plan=plan, base=self.base, data=self.rows_of(name), threads=1)
        return contribution(job, self.instruction, self.adapter)


def write_rows(path: Path, labels: int, *, seed: int) -> None:
    """24 rows of the first ``labels`` labels."""
    rng = np.random.default_rng(seed)
    rows = [
        {"text": " ".join(rng.choice(WORDS, 5)), "label": LABELS[number % labels]}
        for number in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def one_shape(answers: dict[str, tuple[str, int]]) -> None:
    assert len(answers) == 5
    assert len(set(answers.values())) == 1, answers
    assert next(iter(answers.values()))[0] == "vector", answers


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def huge(cohort: TrainingCohort) -> Tensors:
    """A bias so low that the loss of two rows of `timer` is beyond float32."""
    crafted = {name: value.copy() for name, value in cohort.start.items()}
    crafted["classifier.bias"][2] = -3.4e38
    return crafted


def saturated(cohort: TrainingCohort) -> Tensors:
    """A head that is certain of `light`: those who have nothing else have no gradient."""
    crafted = {name: value.copy() for name, value in cohort.start.items()}
    crafted["classifier.weight"][:] = 0
    crafted["classifier.bias"][:] = [60, -60, -60]
    return crafted


def test_a_crafted_head_finds_nobodys_label(mode: str, tmp_path: Path, tiny_base: Path) -> None:
    cohort = TrainingCohort(tmp_path, mode, tiny_base)
    cohort.send(huge(cohort))
    one_shape(cohort.answers())


def test_a_small_crafted_head_under_a_steep_plan_finds_nobodys_label(
    mode: str, tmp_path: Path, tiny_base: Path
) -> None:
    """Every value within reason: it is the plan's step that makes training diverge."""
    steep = {"optimizer": "sgd", "learning_rate": 1e30, "head_learning_rate": 1e30, "epochs": 2}
    steep |= {"proximal_mu": 1e30}  # whoever moved at all is beyond float32 in the next step
    cohort = TrainingCohort(tmp_path, mode, tiny_base, local=steep)
    for member in cohort.members.values():
        write_rows(cohort.rows_of(member.name), 3 if member.name in HOLDERS else 1, seed=3)
    cohort.send(saturated(cohort))
    one_shape(cohort.answers())


UNREADABLE: dict[str, bytes | None] = {
    "a label outside the plan": b'{"text": "a private sentence", "label": "musik"}\n',
    "a column that is missing": b'{"words": "a private sentence", "label": "music"}\n',
    "no rows": b"",
    "no JSON": b"a private sentence\n",
    "an empty text": b'{"text": " ", "label": "music"}\n',
    "not UTF-8": b"\xff\xfe\xff",
    "no file": None,
}


@pytest.mark.parametrize("fault", UNREADABLE)
def test_rows_that_cannot_be_read_look_like_others(
    mode: str, fault: str, tmp_path: Path, tiny_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cohort = TrainingCohort(tmp_path, mode, tiny_base, local={"max_steps": 1})
    for name in HOLDERS:
        path, content = cohort.rows_of(name), UNREADABLE[fault]
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="fedge.client"):
        one_shape(cohort.answers())
    assert caplog.text.count("rows.jsonl") >= len(HOLDERS)  # each owner reads it at home
    assert PRIVATE not in caplog.text


class FaultyCohort(Cohort):
    """The holders' training gives, or raises, what a test says."""

    faulty: Callable[[FaultyCohort, bytes], Contribution]

    def contribution(self, one: bytes) -> Contribution:
        if self.members[one].name in HOLDERS:
            return self.faulty(one)
        return super().contribution(one)


def raising(error: Exception) -> Callable[[FaultyCohort, bytes], Contribution]:
    def fault(cohort: FaultyCohort, one: bytes) -> Contribution:
        raise error

    return fault


def giving(**changes: Any) -> Callable[[FaultyCohort, bytes], Contribution]:
    def fault(cohort: FaultyCohort, one: bytes) -> Contribution:
        return replace(Cohort.contribution(cohort, one), **changes)

    return fault


def metrics(**changes: float) -> dict[str, float]:
    return dict.fromkeys(METRICS, 2.0) | changes


FAULTS = {
    "an unexpected exception": raising(RuntimeError(PRIVATE)),
    "memory": raising(MemoryError()),
    "recursion": raising(RecursionError(PRIVATE)),
    "a missing package": raising(ModuleNotFoundError(PRIVATE)),
    "the machine failed": raising(MachineError("the disk is full", "make room")),
    "some other refusal": raising(FedgeError("odd", "see")),
    "NaN": giving(update=np.full(20, np.nan, np.float32)),
    "infinity": giving(update=np.full(20, np.inf, np.float32)),
    "another length": giving(update=np.zeros(19, np.float32)),
    "an infinite loss": giving(metrics=metrics(loss_sum=float("inf"))),
    "a loss of NaN": giving(metrics=metrics(loss_sum=float("nan"))),
    "a negative loss": giving(metrics=metrics(loss_sum=-1.0)),
    "a metric less": giving(metrics={"examples": 1.0}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_goes_wrong_with_the_rows_looks_like_what_goes_right(
    mode: str, fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cohort = FaultyCohort(tmp_path, mode)
    cohort.faulty = FAULTS[fault].__get__(cohort)  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING, logger="fedge.client"):
        one_shape(cohort.answers())
    assert PRIVATE not in caplog.text  # an exception's text may hold a row


def test_the_sum_counts_failures_and_names_nobody(tmp_path: Path) -> None:
    cohort = FaultyCohort(tmp_path, "secret")
    cohort.faulty = FAULTS["an unexpected exception"].__get__(cohort)  # type: ignore[attr-defined]
    mean, sums = cohort.whole()
    honest = [cohort.updates[one] for one in cohort.ids if cohort.members[one].name not in HOLDERS]
    assert sums["failures"] == 2
    assert sums["examples"] == 3 * 2
    assert np.abs(mean - np.sum(honest, axis=0) / 5).max() < 0.01  # of five: zeros count as updates
