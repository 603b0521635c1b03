"""Measuring adapters on the test rows, label by label, after the rounds the plan names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from client.data import load_rows
from client.examples import Examples
from client.training import predict
from client.worker import Worker
from protocol.layout import Tensors
from protocol.plan import Plan
from simulations.files import read_json, write_json
from simulations.jobs import EXPAND_MIB
from simulations.scores import save_scores, verify_finite
from simulations.tasks import Scores, task_named

EVALUATIONS = "evaluations.json"


class Evaluator:
    """Test rows, encoded once, and the worker they are run by."""

    def __init__(self, plan: Plan, base: Path, test_file: Path) -> None:
        self.worker = Worker(plan, base, expand_mib=EXPAND_MIB)
        self.held_out = load_rows(test_file, plan.task)
        self.rows = self.worker.encode(self.held_out)

    def __len__(self) -> int:
        return len(self.rows)

    def measure(self, tensors: Tensors, *, rows: Sequence[int] | None = None) -> Scores:
        """Run ``tensors`` on all test rows, or on those numbered."""
        chosen = self.rows if rows is None else self.rows.take(np.asarray(rows, np.int64))
        return self.measure_on(tensors, chosen)

    def measure_on(self, tensors: Tensors, rows: Examples) -> Scores:
        """Run ``tensors`` on other rows."""
        finished = finished_tensors(self.worker, tensors)
        outputs = predict(self.worker.engine, finished, rows)
        return task_named(self.worker.plan.task.kind).score(outputs, rows.targets)


def finished_tensors(worker: Worker, tensors: Tensors) -> Tensors:
    """A whole adapter as it is predicted with.

    That is the published form: measured as a coordinator holds it or as it was published, an adapter gives
    the same bits.
    """
    return worker.recipe.resumed(worker.recipe.published(tensors))


def due(plan: Plan, round_number: int) -> bool:
    """Whether the plan wants a measurement after this round."""
    return round_number % plan.evaluation.every == 0 or round_number == plan.rounds


def missing_rounds(out: Path, plan: Plan, finished: Iterable[int]) -> list[int]:
    """Finished rounds whose measurement is due and not on file: those a kill cut off."""
    known = {entry["round"] for entry in load_evaluations(out)}
    return [number for number in sorted(finished) if due(plan, number) and number not in known]


def load_evaluations(out: Path) -> list[dict[str, Any]]:
    """The round and its figures (``Scores.figures``), by round."""
    return list(read_json(out / EVALUATIONS, {"test": []})["test"])


def save_evaluation(out: Path, round_number: int, scores: Scores) -> None:
    """Add one measurement, and keep the last round's by label; each file is replaced as a whole.

    Raises PlanError, with both files as they were, for a model that answers with no numbers.
    """
    verify_finite(scores, f"round {round_number}")
    entries = [entry for entry in load_evaluations(out) if entry["round"] != round_number]
    if all(entry["round"] < round_number for entry in entries):
        save_scores(out, "federated", scores)
    entries.append({"round": round_number, **scores.figures})
    write_json(out / EVALUATIONS, {"test": sorted(entries, key=lambda e: int(e["round"]))})
