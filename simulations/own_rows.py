"""Which test rows stand for a device's own, by what sets simulated devices apart. (docs/adr/0068)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from protocol.encoding import seed_from
from protocol.errors import PlanError
from protocol.plan import Plan
from protocol.rows.read import Table
from simulations.clients import client_name
from simulations.experiment import Experiment
from simulations.files import read_json, write_json
from simulations.partitions import Partition
from simulations.tasks import Scores, task_named

OWN_ROWS = "own_rows.json"
By = Literal["column", "labels", "values", "all"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnRows:
    """Numbers of test rows by client; ``by``: what makes them its own.

    ``column``: they name it. ``labels``: all rows with one of its labels, to be weighed by its mix.
    ``values``: of tenths of the values as many as it has. ``all``: nothing but chance sets devices apart.
    """

    by: By
    rows: Mapping[str, list[int]]

    def of(self, client: str) -> list[int] | None:
        """Those of a client; None: all test rows."""
        return None if self.by == "all" else self.rows[client]

    def has(self, client: str) -> bool:
        """Whether a client has any."""
        return self.by == "all" or bool(self.rows.get(client))

    def count(self, client: str, test_rows: int) -> int:
        """How many a client has, of so many test rows."""
        return test_rows if self.by == "all" else len(self.rows[client])

    def quality(self, scores: Scores, labels: Sequence[str], mix: Mapping[str, int]) -> float:
        """Of ``scores`` of a client's rows; ``mix``: its training rows by label, which weighs ``labels``."""
        expected = scores.for_mix(labels, mix) if self.by == "labels" else None
        return scores.quality if expected is None else expected


def save_own_rows(out: Path, own: OwnRows) -> None:
    """Write them into a run's folder."""
    write_json(out / OWN_ROWS, asdict(own))


def load_own_rows(out: Path) -> OwnRows:
    """Those of a run's folder; nobody's where nobody asked for them."""
    return OwnRows(**read_json(out / OWN_ROWS, {"by": "labels", "rows": {}}))


def own_rows(
    experiment: Experiment, plan: Plan, rows: tuple[Table, Table], parts: Partition
) -> OwnRows:
    """Of the test rows (second of ``rows``) those that are like each part of the training rows.

    Raises PlanError for texts whose devices are told apart by a column that the test rows lack.
    """
    train, test = rows
    column, names = experiment.population.column, [client_name(n) for n in range(len(parts))]
    if column and test.groups:
        places = _places(test.groups)
        values = [train.groups[part[0]] for part in parts]
        found = {name: places.get(value, []) for name, value in zip(names, values, strict=True)}
        return OwnRows(by="column", rows=found)
    if column and plan.task.ANSWERS == "text":
        raise PlanError(
            f"experiment {experiment.name}: `yardsticks.personal`: the test rows do not say whose they are",
            f"give the test file the column `{column}`, or use data.holdout",
        )
    if experiment.population.partition == "iid" or plan.task.ANSWERS == "text":
        return OwnRows(by="all", rows={})
    strata = task_named(plan.task.kind).strata([*train.targets, *test.targets])
    own, places = strata[: len(train)], _places(strata[len(train) :])
    mixes = [_counts(own, part) for part in parts]
    if experiment.has_labels:
        with_labels = {
            name: sorted(row for label in mix for row in places.get(label, []))
            for name, mix in zip(names, mixes, strict=True)
        }
        return OwnRows(by="labels", rows=with_labels)
    alike = {
        name: _sample(mix, places, seed_from("own-rows", plan.seed, name))
        for name, mix in zip(names, mixes, strict=True)
    }
    return OwnRows(by="values", rows=alike)


def _places(values: Sequence[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        places.setdefault(value, []).append(row)
    return places


def _counts(strata: Sequence[str], part: Sequence[int]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in part:
        counts[strata[row]] = counts.get(strata[row], 0) + 1
    return counts


def _sample(mix: Mapping[str, int], places: Mapping[str, list[int]], seed: int) -> list[int]:
    """As many rows as there are with this mix of strata; strata without rows are left out of it."""
    mix = {stratum: count for stratum, count in sorted(mix.items()) if places.get(stratum)}
    times = min((len(places[s]) / count for s, count in mix.items()), default=0.0)
    rng = np.random.default_rng(seed)
    rows: list[int] = []
    for stratum, count in mix.items():
        order = rng.permutation(places[stratum])
        rows += order[: max(1, int(times * count))].tolist()
    return sorted(rows)
