"""One client's part of a round, on the resident base of this process.

A :class:`Worker` is cheap; what it works with (the base, wrapped by peft, one named adapter per
set of adapter settings) is opened once per process and shared by every client it serves. (P-4.2, P-4.3)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from base_model.store import OpenBase, open_base
from client.adapter_model import AdapterModel
from client.batches import Encoded, encode
from client.data import Rows
from client.device import choose_device, matmul_dtype
from client.instructed import check_instruction, verify_length
from client.settings import manifest_at
from client.training import Score, evaluate, train
from protocol.encoding import canonical_json, digest, seed_from
from protocol.errors import ArtefactError, DataError, UpdateError
from protocol.exchange import Contribution
from protocol.layout import Tensors, Vector
from protocol.plan import Plan
from protocol.rules import rule_named
from protocol.wire import Instruction

RESIDENTS = 2  # bases kept open in one process; the one not used for longest is let go


class Resident:
    """A base opened for one number of labels, one PEFT method and one precision."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        device = choose_device()
        self.base: OpenBase = open_base(
            folder,
            labels=len(plan.task.labels),
            matmul_dtype=matmul_dtype(plan.local.precision, device),
        )
        self.base.model.to(device)
        self._models: dict[str, AdapterModel] = {}

    def model(self, plan: Plan) -> AdapterModel:
        """The adapter model of ``plan``; made once, its values are the last loaded."""
        settings = plan.adapter.model_dump(mode="json")
        settings["core"] = rule_named(plan.rule.name).has_core
        key = digest("settings", canonical_json(settings))
        if key not in self._models:
            self._models[key] = AdapterModel(self.base, plan)
        return self._models[key]


_residents: OrderedDict[tuple[str, ...], Resident] = OrderedDict()


def resident_for(plan: Plan, folder: Path) -> Resident:
    """The process's resident base for ``plan``; opened, and verified by hash, at the first call.

    Raises ArtefactError when the folder is damaged or holds another base than the plan's.
    """
    found = manifest_at(folder).fingerprint
    if found != plan.base.fingerprint:
        raise ArtefactError(
            f"{folder}: holds base {found[:12]}…, the plan names {plan.base.fingerprint[:12]}…",
            "fetch the base that the plan names, or correct base.fingerprint",
        )
    key = (found, str(len(plan.task.labels)), plan.adapter.method, plan.local.precision)
    if key not in _residents:
        while len(_residents) >= RESIDENTS:
            _residents.popitem(last=False)
        _residents[key] = Resident(plan, folder)
    _residents.move_to_end(key)
    return _residents[key]


class Worker:
    """Trains clients of ``plan``."""

    def __init__(self, plan: Plan, base_folder: Path) -> None:
        """Use the base at ``base_folder``; raises as :func:`resident_for`, or PlanError."""
        self.plan, self.base_folder = plan, base_folder
        self.contract = rule_named(plan.rule.name)
        self._resident = resident_for(plan, base_folder)
        self.manifest = self._resident.base.manifest
        verify_length(plan, self.manifest)

    def model(self) -> AdapterModel:
        """The resident adapter model."""
        return self._resident.model(self.plan)

    def encode(self, rows: Rows) -> Encoded:
        """Token ids of ``rows`` by the base's tokenizer."""
        tokenizer, task = self._resident.base.tokenizer, self.plan.task
        return encode(tokenizer, rows.texts, rows.labels, task.max_length)

    def contribute(
        self,
        *,
        client: str,
        instruction: Instruction,
        adapter: Vector,
        rows: Rows | Encoded,
        on_step: Callable[[int], None] | None = None,
    ) -> Contribution:
        """Evaluate the received adapter when asked, train the round's roles, return the difference.

        ``adapter`` is the vector that is sent (P-2.6); the update is in the
        layout of the round's roles.
        ``on_step`` is called after every optimiser step; what it raises ends the training.

        Raises ArtefactError when instruction, adapter and plan do not belong together, DataError
        for a client without rows, UpdateError when training diverges.
        """
        received = self.check(instruction, adapter)
        encoded = rows if isinstance(rows, Encoded) else self.encode(rows)
        kept, held_out = self.split(client, encoded)
        model = self.model()
        model.load(received)
        score = Score(correct=0, examples=0, loss_sum=0.0)
        if instruction.evaluate and len(held_out):
            score = evaluate(model, held_out)
        turn = self.plan.turn(instruction.round)
        roles = self.contract.roles(turn)
        trained = train(
            model,
            kept,
            local=self.plan.local,
            roles=roles,
            seed=seed_from("train", self.plan.seed, turn, client),
            on_step=on_step,
        )
        after = model.tensors()
        layout = model.layout.only(roles)
        update = layout.flatten({s.name: after[s.name] - received[s.name] for s in layout.specs})
        if not np.isfinite(update).all():  # after the last step no loss was computed
            raise UpdateError(
                "this client's update is not finite: its training diverged",
                "lower local.learning_rate and local.head_learning_rate",
            )
        return Contribution(
            update=update,
            weight=min(len(kept), self.plan.cohort.max_weight),
            metrics={
                "examples": float(trained.examples),
                "loss_sum": trained.loss_sum,
                "eval_examples": float(score.examples),
                "eval_correct": float(score.correct),
                "train_seconds": trained.seconds,
            },
        )

    def check(self, instruction: Instruction, adapter: Vector) -> Tensors:
        """The checks of P-4.2; returns the received adapter's tensors. Raises ArtefactError."""
        return check_instruction(self.plan, self.manifest, instruction, adapter)

    def split(self, client: str, rows: Encoded) -> tuple[Encoded, Encoded]:
        """(to train on, held out): the same for a client in every round. Raises DataError."""
        out = int(len(rows) * self.plan.evaluation.holdout)
        if len(rows) - out < 1:
            raise DataError(f"client {client} has no rows to train on", "give it data")
        if not out:
            return rows, rows.take(np.empty(0, np.int64))
        rng = np.random.default_rng(seed_from("holdout", self.plan.seed, client))
        order = rng.permutation(len(rows)).astype(np.int64)
        return rows.take(np.sort(order[out:])), rows.take(np.sort(order[:out]))


def worker_for(plan: Plan, base_folder: Path) -> Worker:
    """A worker on the process's resident base; raises as :class:`Worker`."""
    return Worker(plan, base_folder)
