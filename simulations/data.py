"""The rows of an experiment: of its files, read as a site reads them, or of a generator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protocol.chat.messages import chat_from
from protocol.encoding import seed_from
from protocol.errors import DataError, PlanError
from protocol.manifests import AnyManifest
from protocol.media_manifest import MediaManifest
from protocol.plan import Plan
from protocol.rows.formats import read_columns
from protocol.rows.media import codec_of, read_file
from protocol.rows.read import Table, any_label
from protocol.tasks.classification import Labelled
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
        return train, _read(experiment, plan, data.test, _test_column(experiment))
    strata = task_named(plan.task.kind).strata(train.targets)
    return divided(train, strata, data.holdout, plan.seed)


def verify_files(rows: Iterable[Table], manifest: AnyManifest) -> None:
    """Every file that rows name is one that the base reads. Raises DataError for the first that is not."""
    if not isinstance(manifest, MediaManifest):
        return
    codec = codec_of(manifest)
    codec.load()
    for table in rows:
        for row, path in enumerate(table.texts):
            read_file(path, codec, place=str(table.places[row]))


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
    return rows.take(left), rows.take(sorted(test))


def _test_column(experiment: Experiment) -> str:
    """The column that says whose a test row is, where somebody asks and the file has it."""
    column = experiment.population.column
    if not column or not experiment.yardsticks.personal:
        return ""
    path = resolve_source(experiment.data.test, folder=experiment.folder)
    return column if column in read_columns(path) else ""


def _read(experiment: Experiment, plan: Plan, source: str, column: str) -> Table:
    path: Path = resolve_source(source, folder=experiment.folder)
    task = plan.task
    if isinstance(task, Labelled) and not experiment.lists_labels:
        return task.rows_checked(path, any_label, group=column)
    return task.rows(path, group=column)


def _generated(experiment: Experiment, plan: Plan) -> tuple[Table, Table]:
    """Raises PlanError for a plan that the generator has no rows for, DataError for labels it lacks."""
    from simulations.generators import home_chats, home_commands

    task, column = plan.task, experiment.population.column
    if experiment.data.generator == "home-chats":
        if task.kind != "causal-lm" or task.form != "messages":
            raise _unfit(experiment, "chats", 'use task.kind = "causal-lm"')
        generated, texts, target = home_chats(plan.seed), task.messages, ""
    else:
        if task.kind != "classification" or task.pairs:
            remedy = "leave task.kind and task.text_pair out"
            raise _unfit(experiment, "single texts with labels", remedy)
        generated, texts, target = home_commands(plan.seed), task.text, task.label
    columns = [texts, *filter(None, [target, column])]
    if missing := [name for name in columns if name not in generated.train[0]]:
        raise PlanError(
            f"experiment {experiment.name}: the generator's rows have no column `{missing[0]}`",
            f"its columns are {', '.join(generated.train[0])}",
        )
    train, test = (_table(rows, texts, target) for rows in (generated.train, generated.test))
    if target and experiment.lists_labels:
        _verify_listed(plan, train, test)
    groups = [row[column] for row in generated.train] if column else []
    return Table(texts=train.texts, targets=train.targets, groups=groups), test


def _unfit(experiment: Experiment, rows: str, remedy: str) -> PlanError:
    return PlanError(
        f"experiment {experiment.name}: the generator's rows are {rows}",
        f"name files of your own under [data], or {remedy}",
    )


def _table(rows: Sequence[dict[str, Any]], texts: str, target: str) -> Table:
    if target:
        return Table(texts=[row[texts] for row in rows], targets=[row[target] for row in rows])
    chats = [chat_from(row[texts]) for row in rows]
    return Table(texts=list(chats), targets=[chat.messages[-1]["content"] for chat in chats])


def _verify_listed(plan: Plan, train: Table, test: Table) -> None:
    assert plan.task.kind == "classification"
    if unlisted := set(train.targets + test.targets) - set(plan.task.labels):
        raise DataError(
            f"the data has the label {min(unlisted)!r}, which `plan.task.labels` does not list",
            "list every label, or leave task.labels out",
        )
