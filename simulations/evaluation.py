"""Measuring adapters on the test rows: accuracy and mean loss, after the rounds the plan names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from client.adapter_model import AdapterModel
from client.data import load_rows
from client.training import evaluate
from client.worker import Worker, worker_for
from protocol.adapter import LORA_A, adapter_layout, as_plain_lora, with_unit_cores
from protocol.layout import Tensors
from protocol.plan import Plan
from protocol.rules import Role
from simulations.files import read_json, write_json

EVALUATIONS = "evaluations.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """``accuracy`` in 0..1; ``loss`` is the mean cross-entropy in nats."""

    accuracy: float
    loss: float


class Evaluator:
    """Test rows, encoded once, and the resident base they are run on."""

    def __init__(self, plan: Plan, base: Path, test_file: Path) -> None:
        self._worker = worker_for(plan, base)
        self.rows = load_rows(test_file, plan.task)
        self._rows = self._worker.encode(self.rows)

    def __len__(self) -> int:
        return len(self._rows)

    def measure(self, tensors: Tensors, *, rows: Sequence[int] | None = None) -> Measured:
        """Run ``tensors`` on all test rows, or on those numbered."""
        chosen = self._rows if rows is None else self._rows.take(np.asarray(rows, np.int64))
        score = evaluate(finished_model(self._worker, tensors), chosen)
        return Measured(accuracy=score.accuracy, loss=score.loss_sum / score.examples)


def finished_model(worker: Worker, tensors: Tensors) -> AdapterModel:
    """The resident model with a whole adapter in it, of whatever rank, to predict with.

    What predicts is the published form: measured as a coordinator holds it or as it was published,
    an adapter gives the same bits.
    """
    ranks = [len(value) for name, value in tensors.items() if name.endswith(LORA_A)]
    rank = ranks[0] if ranks else worker.plan.adapter.rank
    if not worker.contract.fresh_each_round:
        model = worker.model(rank)
        model.load(with_unit_cores(as_plain_lora(tensors), model.layout))
        return model
    # A stack has another rank every round: it lies beside the resident model's empty adapter.
    model = worker.model()
    model.load_stack(tensors, rank=rank)
    blank = {spec.name: np.zeros(spec.shape, np.float32) for spec in model.layout.specs}
    head = model.layout.only({Role.HEAD}).specs
    model.load(blank | {spec.name: tensors[spec.name] for spec in head})
    return model


def starting_model(worker: Worker, tensors: Tensors) -> AdapterModel:
    """The resident model with an adapter of the plan's rank in it and no stack beside, to train."""
    model = worker.model()
    if worker.contract.fresh_each_round:
        layout = adapter_layout(worker.plan, worker.manifest, rank=0)
        model.load_stack({s.name: np.zeros(s.shape, np.float32) for s in layout.specs}, rank=0)
    model.load(tensors)
    return model


def due(plan: Plan, round_number: int) -> bool:
    """Whether the plan wants a measurement after this round."""
    return round_number % plan.evaluation.every == 0 or round_number == plan.rounds


def missing_rounds(out: Path, plan: Plan, finished: Iterable[int]) -> list[int]:
    """Finished rounds whose measurement is due and not on file: those a kill cut off."""
    known = {entry["round"] for entry in load_evaluations(out)}
    return [number for number in sorted(finished) if due(plan, number) and number not in known]


def load_evaluations(out: Path) -> list[dict[str, Any]]:
    """``[{round, accuracy, loss}]`` by round."""
    return list(read_json(out / EVALUATIONS, {"test": []})["test"])


def save_evaluation(out: Path, round_number: int, measured: Measured) -> None:
    """Add one measurement; the file is replaced as a whole."""
    entries = [entry for entry in load_evaluations(out) if entry["round"] != round_number]
    entry = {"round": round_number, "accuracy": measured.accuracy, "loss": measured.loss}
    entries.append(entry)
    write_json(out / EVALUATIONS, {"test": sorted(entries, key=lambda e: int(e["round"]))})
