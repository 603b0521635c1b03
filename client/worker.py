"""One client's part of a round, on the base and the engine of this process.

A :class:`Worker` is cheap; what it works with (the verified base, its program's sessions) is opened once
per process and shared by every client that it serves. (P-4.2, P-4.3)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from client.batches import held_out
from client.control_variates import Correction
from client.data import Rows
from client.engine.choice import engine_for
from client.engine.interface import Values
from client.examples import Examples
from client.instructed import Received, check_instruction, verify_fits
from client.kept_controls import Controls
from client.opened_base import opened_base
from client.tasks import Score, task_named
from client.training import predict, train
from protocol.encoding import seed_from
from protocol.errors import DataError, UpdateError
from protocol.exchange import Contribution
from protocol.layout import Layout, Tensors, Vector
from protocol.plan import Plan
from protocol.recipe import Recipe
from protocol.rules import Parts
from protocol.wire import Instruction


class Worker:
    """Trains clients of ``plan``."""

    def __init__(
        self,
        plan: Plan,
        base_folder: Path,
        *,
        threads: int = 0,
        programs: Path | None = None,
        parts: Iterable[Parts] | None = None,
        expand_mib: int = 0,
    ) -> None:
        """Use the base at ``base_folder``; the others as :func:`client.engine.choice.engine_for`.

        Raises ArtefactError when the base is damaged, not the plan's, or has no program; PlanError when the
        plan does not fit it; MachineError when the plan's engine is not installed.
        """
        self.plan, self.base_folder = plan, base_folder
        self.task = task_named(plan.task.kind)
        self._base = opened_base(plan, base_folder)
        self.manifest = self._base.manifest
        self.recipe = Recipe(plan=plan, manifest=self.manifest)
        verify_fits(self.recipe)
        self.engine = engine_for(
            self.recipe,
            self._base,
            threads=threads,
            programs=programs,
            parts=parts,
            expand_mib=expand_mib,
        )

    def encode(self, rows: Rows) -> Examples:
        """What the graph reads of ``rows``. Raises DataError for a row that cannot be learnt."""
        return self.task.encode(rows, self.recipe, self._base)

    def contribute(
        self,
        *,
        client: str,
        instruction: Instruction,
        adapter: Vector,
        round_0: Vector | None = None,
        rows: Rows | Examples,
        controls: Controls | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Contribution:
        """Evaluate the received adapter when asked, train the round's parts, return the difference.

        ``adapter`` and ``round_0`` are vectors as they are sent (P-2.6, P-4.2); the update is in the layout
        of the round's parts. ``controls``: where those are kept that a plan with `scaffold` asks for.
        ``on_step`` is called after every optimiser step; what it raises ends the training.

        Raises ArtefactError when instruction, adapter and plan do not belong together, DataError
        for a client without rows, UpdateError when training diverges, MachineError when control variates
        cannot be kept.
        """
        received = self.check(instruction, adapter, round_0)
        start = received.adapter
        encoded = self.encode(rows) if isinstance(rows, Rows) else rows
        kept, unseen = self.split(client, encoded)
        tested = unseen if instruction.evaluate else unseen.take(np.empty(0, np.int64))
        score = self.score(start, tested)
        turn = self.plan.turn(instruction.round)
        parts = self.recipe.parts(instruction.round)
        correction = self._correction(instruction, start, controls)
        trained = train(
            self.engine,
            start,
            kept,
            local=self.plan.local,
            parts=parts,
            seed=seed_from("train", self.plan.seed, turn, client),
            recipe=self.recipe,
            round_0=received.round_0,
            shift=correction.shift if correction else None,
            on_step=on_step,
        )
        update = _difference(trained.tensors, start, self.engine.layout.only(parts))
        if correction and controls:
            controls.keep(correction.remembered(update))
        return Contribution(
            update=update,
            weight=min(len(kept), self.plan.cohort.max_weight),
            metrics={
                "examples": float(trained.examples),
                "loss_sum": trained.loss_sum,
                **score.metrics,
                "train_seconds": trained.seconds,
            },
        )

    def _correction(
        self, instruction: Instruction, adapter: Tensors, controls: Controls | None
    ) -> Correction | None:
        if not self.plan.local.scaffold:
            return None
        if controls is None:
            raise ValueError("a plan with `scaffold` is for clients that keep control variates")
        return Correction(self.recipe, instruction.round, adapter, controls.load())

    def score(self, tensors: Values, rows: Examples) -> Score:
        """How an adapter does on rows."""
        return self.task.score(predict(self.engine, tensors, rows), rows.targets)

    def check(
        self, instruction: Instruction, adapter: Vector, round_0: Vector | None = None
    ) -> Received:
        """The checks of P-4.2; returns what was sent. Raises ArtefactError."""
        return check_instruction(self.recipe, instruction, adapter, round_0)

    def split(self, client: str, rows: Examples) -> tuple[Examples, Examples]:
        """(to train on, held out): the same for a client in every round. Raises DataError."""
        out = int(len(rows) * self.plan.evaluation.holdout)
        if len(rows) - out < 1:
            raise DataError(f"client {client} has no rows to train on", "give it data")
        if not out:
            return rows, rows.take(np.empty(0, np.int64))
        kept, held = held_out(len(rows), out, seed=seed_from("holdout", self.plan.seed, client))
        return rows.take(kept), rows.take(held)


def _difference(after: Tensors, before: Values, layout: Layout) -> Vector:
    """(d,) of ``layout``. Raises UpdateError where it is not finite."""
    update = layout.flatten({s.name: after[s.name] - before[s.name] for s in layout.specs})
    if not np.isfinite(update).all():  # after the last step no loss was computed
        raise UpdateError(
            "this client's update is not finite: its training diverged",
            "lower local.learning_rate and local.head_learning_rate",
        )
    return update
