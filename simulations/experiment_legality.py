"""Whether an experiment fits together, beyond what a plan alone can say. (docs/experiment-keys.md)"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from protocol.decoder_manifest import DECODER
from protocol.errors import PlanError, shortened
from protocol.media import SOUND
from protocol.methods import method_of
from protocol.plan import Plan
from protocol.plan_sections import Cohort
from protocol.seq2seq_manifest import SEQ2SEQ
from simulations.clients import client_name
from simulations.experiment_measures import Memorisation

if TYPE_CHECKING:
    from simulations.experiment import Experiment


def verify_possible(experiment: Experiment, plan: Plan, path: Path) -> None:
    """Base, task, head, yardsticks and clients of the experiment at ``path`` fit. Raises PlanError."""
    _verify_scales(experiment, plan, path)
    _verify_of_task(experiment, plan, path)
    _verify_cohort(plan.cohort, experiment.population.clients, path)


def _verify_cohort(cohort: Cohort, clients: int, path: Path) -> None:
    """Whom a plan names are there, and as many as a round asks. Raises PlanError."""
    there = {client_name(number) for number in range(clients)}
    if absent := [name for name in cohort.clients if name not in there]:
        raise PlanError(
            f"{path}: `plan.cohort.clients` names {shortened(absent[0], 100)}, and the {clients} clients are "
            f"{client_name(0)} to {client_name(clients - 1)}",
            "correct the name or raise population.clients",
        )
    if cohort.asked > (some := len(cohort.clients) or clients):
        more = f" and `plan.cohort.spare` {cohort.spare}" if cohort.spare else ""
        raise PlanError(
            f"{path}: `plan.cohort.size` is {cohort.size}{more}, but there are {some} clients"
            + (" named in `plan.cohort.clients`" if cohort.clients else ""),
            "lower plan.cohort.size, or "
            + ("name more clients" if cohort.clients else "raise population.clients"),
        )


def _verify_scales(experiment: Experiment, plan: Plan, path: Path) -> None:
    """Slots of scales where a method fills them, and nowhere that has none. Raises PlanError."""
    if method_of(plan.adapter).scales and experiment.base.source and not experiment.base.scales:
        raise PlanError(
            f"{path}: method `{plan.adapter.method}` fills scales of linears, which this base would not have",
            "set base.scales = true",
        )
    if experiment.base.scales and experiment.base_task in (DECODER, SEQ2SEQ):
        raise PlanError(
            f"{path}: `base.scales`: bases that write text have no scales", "leave it out"
        )


def _verify_of_task(experiment: Experiment, plan: Plan, path: Path) -> None:
    """Sections that are for some tasks alone. Raises PlanError."""
    if experiment.head != type(experiment.head)() and not (
        experiment.has_labels and experiment.has_texts
    ):
        raise PlanError(
            f"{path}: `head` is for a classification of texts, no other task has labels that a base reads",
            "leave it out",
        )
    if experiment.base.seconds and experiment.base_task != SOUND.task:
        raise PlanError(
            f"{path}: `base.seconds` is for a base of sounds", "leave it out, or correct plan.task"
        )
    if experiment.yardsticks.personal_parts == "head" and not plan.task.outputs:
        raise PlanError(
            f"{path}: `yardsticks.personal_parts`: bases that write text have no head to train",
            'leave it out, or use personal_parts = "all"',
        )
    if experiment.memorisation != Memorisation() and plan.task.kind != "causal-lm":
        raise PlanError(
            f"{path}: `memorisation` is for text that follows text",
            'leave it out, or use plan.task.kind = "causal-lm"',
        )
