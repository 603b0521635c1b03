"""What is to be known about an experiment before it runs: its plan's findings, and those of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from protocol.legality import Finding, check
from protocol.manifests import AnyManifest
from protocol.plan import Plan
from protocol.rows.formats import shown
from protocol.rows.labels import verify_distinct, verify_several
from protocol.rows.read import Table
from protocol.tasks.classification import Labelled
from simulations.clients import taken
from simulations.experiment import Experiment

NAMED = 5  # labels that a line names
NEAR = 0.005  # as a share is written


def findings_of(
    experiment: Experiment, plan: Plan, manifest: AnyManifest | None, rows: tuple[Table, Table]
) -> list[Finding]:
    """All of them, errors first. ``rows`` are to train and to test on."""
    order = {"error": 0, "warning": 1, "note": 2}
    everything = [*check(plan, manifest), *_rows(experiment, plan, *rows)]
    return sorted(everything, key=lambda finding: order[finding.severity])


def _rows(experiment: Experiment, plan: Plan, train: Table, test: Table) -> Iterator[Finding]:
    if isinstance(plan.task, Labelled):
        yield from _labels(plan.task.labels, train, test)
    asked = plan.rounds * plan.cohort.size
    clients = taken(plan.cohort, experiment.population.clients)
    share = min(1.0, plan.cohort.size / clients)
    if plan.local.scaffold and abs(plan.local.scaffold - share) > NEAR:
        yield _warning(
            "plan.local.scaffold",
            f"it is {plan.local.scaffold:g}, and a round asks {share:.3g} of all clients",
            f"write {share:.3g}: it is the share that a round asks",
        )
    if asked < clients:
        yield _warning(
            "plan.cohort.size",
            f"{plan.rounds} rounds of {plan.cohort.size} ask {asked} of {clients} clients at most",
            "more rounds, or more clients a round",
        )


def _labels(labels: Iterable[str], train: Table, test: Table) -> Iterator[Finding]:
    taught, tested = set(train.targets), set(test.targets)
    if only := tested - taught:
        share = sum(label in only for label in test.targets) / len(test)
        yield _warning(
            "data.test",
            f"{_named(only)} in the test rows only ({share:.1%} of them): nobody can learn them",
            "check the files; leave those rows out, or train on some of them",
        )
    if absent := set(labels) - taught - tested:
        yield _warning(
            "plan.task.labels",
            f"{_named(absent)} in the list, and in no row",
            "correct the list or the data",
        )


def _named(labels: Iterable[str]) -> str:
    several = sorted(labels)
    text = ", ".join(shown(label) for label in several[:NAMED])
    more = f" and {len(several) - NAMED} more" if len(several) > NAMED else ""
    noun, verb = ("label", "stands") if len(several) == 1 else ("labels", "stand")
    return f"the {noun} {text}{more} {verb}"


def _warning(field: str, cause: str, remedy: str) -> Finding:
    return Finding(severity="warning", field=field, cause=cause, remedy=remedy)


def finding_of(stored: dict[str, Any]) -> Finding:
    """One that a run folder keeps."""
    return Finding(**stored)


def labels_of(experiment: Experiment, rows: tuple[Table, Table]) -> list[str]:
    """The labels of the rows. Raises DataError when they teach nothing or, not listed, look alike.

    None of a task without labels.
    """
    if not experiment.has_labels:
        return []
    found, source = rows[0].targets + rows[1].targets, f"experiment {experiment.name}"
    if not experiment.lists_labels:
        return verify_distinct(found, source)
    verify_several(found, source)
    return sorted(set(found))
