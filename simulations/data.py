"""The rows of an experiment: of its files, read as a site reads them, or of a generator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from protocol.encoding import seed_from
from protocol.errors import DataError, PlanError
from protocol.plan import Plan
from protocol.rows.read import Table, any_label, read_rows
from simulations.experiment import Experiment, resolve_source
from simulations.tasks import task_named


def experiment_rows(experiment: Experiment) -> tuple[Table, Table]:
    """Training and test rows. Raises DataError for the first row that does not fit."""
    plan = experiment.plan_for(fingerprint="0" * 64, labels=["a", "b"])
    if experiment.data.generator:
        return _generated(experiment, plan)
    data, column = experiment.data, experiment.population.column
    train = _read(experiment, plan, data.train, column)
    if data.test:
        return train, _read(experiment, plan, data.test, "")
    strata = task_named(plan.task.kind).strata(train.targets)
    return divided(train, strata, data.holdout, plan.seed)


def divided(rows: Table, strata: Sequence[str], share: float, seed: int) -> tuple[Table, Table]:
    """Rows to train and to test on: of every stratum (label, say) a share, never its last row.

    Raises DataError.
    """
    by_label: dict[str, list[int]] = {}
    for row, label in enumerate(strata):
        by_label.setdefault(label, []).append(row)
    test: list[int] = []
    for label, places in sorted(by_label.items()):
        count = min(round(share * len(places)), len(places) - 1)
        order = np.random.default_rng(seed_from("test-rows", seed, label)).permutation(places)
        test += order[:count].tolist()
    if not test:
        raise DataError(
            f"no label has enough rows to keep {share:g} of them for the test",
            "raise data.holdout, or name a test file",
        )
    left = sorted(set(range(len(rows))) - set(test))
    kept = rows.take(sorted(test))
    return rows.take(left), Table(texts=kept.texts, targets=kept.targets)


def _read(experiment: Experiment, plan: Plan, source: str, column: str) -> Table:
    path: Path = resolve_source(source, folder=experiment.folder)
    task = plan.task
    if experiment.lists_labels or task.kind != "classification":
        return task.rows(path, group=column)
    return read_rows(
        path,
        text=task.text,
        pair=task.text_pair,
        target=task.column,
        check=any_label,
        group=column,
    )


def _generated(experiment: Experiment, plan: Plan) -> tuple[Table, Table]:
    from simulations.generators import home_commands

    if plan.task.kind != "classification" or plan.task.pairs:
        raise PlanError(
            f"experiment {experiment.name}: the generator's rows are single texts with labels",
            "name files of your own under [data], or leave task.kind and task.text_pair out",
        )
    made, column = home_commands(plan.seed), experiment.population.column
    wanted = [plan.task.text, plan.task.label, *filter(None, [column])]
    if missing := [name for name in wanted if name not in made.train[0]]:
        raise PlanError(
            f"experiment {experiment.name}: the generator's rows have no column `{missing[0]}`",
            f"its columns are {', '.join(made.train[0])}",
        )
    text, label = plan.task.text, plan.task.label
    train, test = (
        Table(texts=[row[text] for row in rows], targets=[row[label] for row in rows])
        for rows in (made.train, made.test)
    )
    groups = [row[column] for row in made.train] if column else []
    if experiment.lists_labels and (
        odd := set(train.targets + test.targets) - set(plan.task.labels)
    ):
        raise DataError(
            f"the data has the label {min(odd)!r}, which `plan.task.labels` does not list",
            "list every label, or leave task.labels out",
        )
    return Table(texts=train.texts, targets=train.targets, groups=groups), test
