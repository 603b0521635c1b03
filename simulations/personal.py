"""What devices gain by a part of their own: each goes on from the last round's adapter on its own rows.

Its adapter is measured on test rows like its own (:mod:`simulations.own_rows`), beside the adapter that all
share and the one that it trains alone. As of `fedge edge train` on a device the result goes nowhere.
(docs/adr/0068)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from protocol.encoding import seed_from
from protocol.errors import UpdateError
from protocol.layout import Tensors
from protocol.recipe import Recipe
from protocol.rules import Parts
from simulations.clients import client_name
from simulations.evaluation import Evaluator, finished_tensors
from simulations.files import read_json
from simulations.own_rows import load_own_rows
from simulations.prepare import LISTED, Prepared
from simulations.records import published_adapter
from simulations.tasks import task_named
from simulations.yardstick_training import all_parts, participants, rows_of, trained

Json = dict[str, Any]


def sampled(prepared: Prepared) -> list[int]:
    """All devices that take part in the seeded order in which yardsticks take them."""
    rng = np.random.default_rng(seed_from("alone", prepared.plan.seed))
    order: list[int] = rng.permutation(prepared.experiment.population.clients).tolist()
    return [partition for partition in order if partition in participants(prepared)]


def personal_devices(prepared: Prepared) -> list[int]:
    """Those that are personalised: the first that have test rows of their own, by number."""
    own = load_own_rows(prepared.out)
    able = [partition for partition in sampled(prepared) if own.has(client_name(partition))]
    return sorted(able[: prepared.experiment.yardsticks.personal])


class Personal:
    """The adapter that all share, and what is measured of devices that go on from it."""

    def __init__(self, prepared: Prepared, evaluator: Evaluator) -> None:
        self._prepared, self._evaluator = prepared, evaluator
        self._own = load_own_rows(prepared.out)
        self._listed = read_json(prepared.out / LISTED)["clients"]
        task = prepared.plan.task
        self._labels = task_named(task.kind).labels(task)
        last = published_adapter(prepared.out, prepared.plan.rounds)
        self._shared = finished_tensors(evaluator.worker, last)

    def measure(self, partition: int) -> Json:
        """Quality on a device's own test rows: ``federated``, and ``personal`` after its training.

        Raises UpdateError where that diverges.
        """
        name, plan = client_name(partition), self._prepared.plan
        settings = self._prepared.experiment.yardsticks
        rows = rows_of(self._prepared, partition)
        adapted = trained(
            self._prepared,
            rows,
            start=self._shared,
            parts=self._parts,
            seed=seed_from("yardstick", plan.seed, "personal", name),
            epochs=settings.personal_epochs,
            rate=settings.personal_rate,
        )
        return {
            "rows": len(rows),
            "test_rows": self._own.count(name, len(self._evaluator)),
            "federated": self.quality(name, self._shared),
            "personal": self.quality(name, adapted),
        }

    def quality(self, client: str, tensors: Tensors) -> float:
        """Of an adapter on a client's own test rows. Raises UpdateError for answers that are no numbers."""
        scores = self._evaluator.measure(tensors, rows=self._own.of(client))
        if not scores.is_finite:
            raise UpdateError("its answers are no numbers", "lower local.learning_rate")
        mix = self._listed[client].get("label_rows", {})
        return self._own.quality(scores, self._labels, mix)

    @property
    def _parts(self) -> Parts:
        if self._prepared.experiment.yardsticks.personal_parts == "head":
            prepared = self._prepared
            return Recipe(plan=prepared.plan, manifest=prepared.manifest).head_parts
        return all_parts(self._prepared)


def means(per_client: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Of each training over the devices; of `alone` only where every device has been trained alone."""
    devices = list(per_client.values())
    return {
        whose: float(np.mean([each[whose] for each in devices]))
        for whose in ("federated", "personal", "alone")
        if devices and all(whose in each for each in devices)
    }
