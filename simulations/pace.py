"""How long an experiment will take, from a few steps that are timed on this machine.

Training and measuring are nearly all of a run; what else it does (masks, sums, the log) shows in the rounds
themselves, by which the time that is left is corrected. (docs/adr/0037)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import numpy as np

from client.examples import Examples
from client.training import predict, train
from client.worker import Worker
from protocol.errors import UpdateError
from protocol.plan import Plan
from simulations.evaluation import due
from simulations.experiment_measures import Yardsticks
from simulations.progress import duration

WARM, STEPS, MOST_ROWS = 1, 3, 64
PARITY = 2.0  # a release runs its rows through torch and through ONNX Runtime
Seconds = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Wall seconds of one training step of a batch, and of measuring one row."""

    step: float
    row: float

    def to_dict(self) -> Seconds:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Rows of every client, and of the test; what is compared with.

    ``own_rows``: test rows of every device that is personalised.
    """

    clients: Sequence[int]
    test_rows: int
    yardsticks: Yardsticks
    own_rows: Sequence[int] = ()


def measure_pace(
    worker: Worker, rows: Examples, *, clock: Callable[[], float] = time.perf_counter
) -> Pace:
    """Time ``STEPS`` steps of the plan's batch size on ``rows``, behind one that warms up."""
    plan = worker.plan
    start = worker.recipe.start()
    local = plan.local.model_copy(update={"max_steps": WARM + STEPS})
    need = local.batch_size * local.max_steps
    batch = rows.take(np.resize(np.arange(len(rows)), need))
    ends: list[float] = []
    parts = worker.recipe.parts(1)
    with suppress(UpdateError):  # one that diverges takes as long
        train(
            worker.engine,
            start,
            batch,
            local=local,
            parts=parts,
            seed=0,
            recipe=worker.recipe,
            round_0=start,
            on_step=lambda step: ends.append(clock()),
        )
    sample = rows.take(np.arange(min(MOST_ROWS, len(rows))))
    begun = clock()
    predict(worker.engine, start, sample)
    return Pace(step=(ends[-1] - ends[WARM - 1]) / STEPS, row=(clock() - begun) / len(sample))


def forecast_parts(plan: Plan, pace: Pace, work: Work) -> Seconds:
    """Seconds of a simulation's parts; clients work one after the other."""
    local, asked = plan.local, plan.rounds * plan.cohort.asked / len(work.clients)

    def steps(rows: float, epochs: float) -> int:
        return math.ceil(rows / local.batch_size) * math.ceil(epochs)

    each = [min(steps(rows, local.epochs), local.max_steps or math.inf) for rows in work.clients]
    trained = asked * sum(each)
    passes = asked * local.epochs
    if local.max_steps:
        seen = sum(
            min(rows * local.epochs, local.max_steps * local.batch_size) for rows in work.clients
        )
        passes = asked * seen / sum(work.clients)
    mean = sum(work.clients) / len(work.clients)
    measured = work.test_rows * pace.row
    times = sum(due(plan, number) for number in range(1, plan.rounds + 1))
    personal = len(work.own_rows)
    alone = max(min(work.yardsticks.alone, len(work.clients)), personal)
    alone_rows = min(work.yardsticks.alone_test_rows or work.test_rows, work.test_rows)
    every = plan.release.every
    releases = len([n for n in range(1, plan.rounds) if every and n % every == 0]) + 1
    return {
        "federated": trained * pace.step,
        "evaluation": times * measured,
        "pooled": work.yardsticks.pooled
        * (passes * sum(work.clients) / local.batch_size * pace.step + measured),
        "alone": alone
        * (passes * max(mean / local.batch_size, 1) * pace.step + alone_rows * pace.row),
        "personal": (
            personal * steps(mean, work.yardsticks.personal_epochs) * pace.step
            + 3 * sum(work.own_rows) * pace.row  # by three adapters
        ),
        "release": releases * PARITY * measured,
    }


class Outlook:
    """The time that is left: rounds as long as those so far, and the rest as forecast."""

    def __init__(self, plan: Plan, forecast: Mapping[str, float]) -> None:
        self._plan, self._forecast = plan, forecast
        self._seconds: list[float] = []

    def round(self, number: int, seconds: float, measured: tuple[float, float] | None) -> str:
        """A line on a round that took ``seconds``; ``measured`` are quality and loss, if they were."""
        self._seconds.append(seconds)
        figures = "not measured"
        if measured is not None:
            figures = f"{self._plan.task.QUALITY.said(measured[0])}, loss {measured[1]:.3f}"
        left = duration(self.left(number))
        return f"round {number} of {self._plan.rounds}: {figures}; {duration(seconds)}, about {left} left"

    def left(self, number: int) -> float:
        """Seconds after round ``number``, the yardsticks and the release among them."""
        plan, expected = self._plan, self._forecast
        planned = expected.get("federated", 0.0) / plan.rounds
        each = sum(self._seconds) / len(self._seconds) if self._seconds else planned
        all_due = [due(plan, n) for n in range(1, plan.rounds + 1)]
        rest = expected.get("evaluation", 0.0) * sum(all_due[number:]) / sum(all_due)
        rest += sum(expected.get(part, 0.0) for part in ("pooled", "alone", "personal", "release"))
        return (plan.rounds - number) * each + rest
