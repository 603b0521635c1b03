"""Training beside the rounds, by the plan's optimiser: whose rows, and how often they are passed over."""

from __future__ import annotations

import math
from collections.abc import Sequence

from client.data import Rows, load_rows
from client.training import train
from client.worker import Worker
from protocol.layout import Tensors
from protocol.recipe import Recipe
from protocol.rules import Parts
from simulations.clients import client_name
from simulations.jobs import EXPAND_MIB
from simulations.prepare import Prepared


def participants(prepared: Prepared) -> list[int]:
    """The devices that the plan takes: yardsticks are of the rows that its rounds have. (P-4.1)"""
    clients = range(prepared.experiment.population.clients)
    return [number for number in clients if prepared.plan.cohort.takes(client_name(number))]


def pooled_rows(prepared: Prepared) -> Rows:
    """All rows of the participants in one place."""
    parts = [rows_of(prepared, partition) for partition in participants(prepared)]
    return Rows(
        texts=[text for part in parts for text in part.texts],
        targets=[target for part in parts for target in part.targets],
    )


def passes(prepared: Prepared, partitions: Sequence[int] | None = None) -> float:
    """How often the federated run passes over a row of these devices (of all participants without).

    ``rounds * cohort.size / participants * local.epochs``, less what ``local.max_steps`` cuts off.
    """
    plan, everybody = prepared.plan, participants(prepared)
    counts = [len(rows_of(prepared, partition)) for partition in partitions or everybody]
    bound = plan.local.max_steps * plan.local.batch_size or math.inf
    passed = sum(min(plan.local.epochs * count, bound) for count in counts)
    asked = min(plan.cohort.size, len(everybody)) / len(everybody)
    return plan.rounds * asked * passed / sum(counts)


def all_parts(prepared: Prepared) -> Parts:
    """The parts of the adapter that some rule would train."""
    return Recipe(plan=prepared.plan, manifest=prepared.manifest).trainable


def trained(
    prepared: Prepared,
    rows: Rows,
    *,
    start: Tensors | None = None,
    parts: Parts | None = None,
    seed: int,
    epochs: float,
    rate: float = 1.0,
) -> Tensors:
    """What becomes of ``start``, or of what the plan's seed begins with.

    Without ``parts`` those of :func:`all_parts` are trained; ``rate``: times the plan's learning rates. Where
    the plan goes on from a run, ``l2_sp`` pulls to what this training begins with.
    Raises UpdateError where it diverges.
    """
    plan = prepared.plan
    recipe = Recipe(plan=plan, manifest=prepared.manifest)
    start, parts = start or recipe.start(), parts or recipe.trainable
    worker = Worker(plan, prepared.base, parts=[parts], expand_mib=EXPAND_MIB)
    rates = {
        "learning_rate": rate * plan.local.learning_rate,
        "head_learning_rate": rate * plan.local.head_learning_rate,
    }
    # A client's bound on steps is per round; here the passes are the bound.
    local = plan.local.model_copy(update={"max_steps": 0, **rates})
    encoded = worker.encode(rows)
    return train(
        worker.engine,
        start,
        encoded,
        local=local,
        parts=parts,
        seed=seed,
        epochs=epochs,
        recipe=recipe,
        round_0=start if plan.start else None,
    ).tensors


def rows_of(prepared: Prepared, partition: int) -> Rows:
    """A device's rows, all of them."""
    return load_rows(prepared.client_file(partition), prepared.plan.task)
