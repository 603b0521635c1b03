"""The integers beside a masked update, and the most of each that an honest client sends. (P-6.11)

Whoever decodes a sum compares it with these bounds: what no honest clients could have sent together is
no sum. A client cuts its own figures to them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocol.errors import UpdateError
from protocol.exchange import Contribution
from protocol.plan import Plan
from protocol.tasks.base import Metric
from protocol.wire import Instruction

# Beside the task's metrics: 1 of a client that had nothing to give (its update and metrics are zero), and
# 1 of a client whose update was longer than the clip.
OF_THE_SUM = ("failures", "clipped")
COUNTER_BITS = 40
MOST_ROWS = 2**24  # of one client, in one epoch
TOP = 2**COUNTER_BITS - 1
IMPOSSIBLE = "one of its clients, or the coordinator, breaks the rules; the model is unchanged"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that one client counts, as integers that travel.

    ``metrics`` are the task's; ``most`` has those that no other counter bounds.
    """

    metrics: Mapping[str, Metric]
    most: Mapping[str, int]

    @property
    def names(self) -> list[str]:
        """All counters in the order of the wire: the task's metrics, failures, clipped."""
        return [*self.metrics, *OF_THE_SUM]

    def of_client(self, given: Contribution, *, clipped: bool) -> list[int]:
        """A client's counters in the order of :attr:`names`, cut to what is honest.

        Raises UpdateError for a metric that is no number or negative.
        """
        if given.failed:
            return [int(name == "failures") for name in self.names]
        if not all(0 <= given.metrics[name] < math.inf for name in self.metrics):
            raise UpdateError(
                "a metric of this client is negative or no number", "lower local.learning_rate"
            )
        count: dict[str, int] = {}
        for name, metric in self.metrics.items():
            most = min(count[metric.of] * metric.each, TOP) if metric.of else self.most[name]
            count[name] = min(round(given.metrics[name] * metric.scale), most)
        return [*count.values(), 0, int(clipped)]

    def verify(self, sums: Sequence[int], summands: int) -> None:
        """Sums that ``summands`` honest clients can have. Raises UpdateError."""
        of = dict(zip(self.names, sums, strict=True))
        trained = summands - of["failures"]  # those who failed count nothing else
        bounds = {"failures": summands, "clipped": trained} | {
            name: min(of[metric.of] * metric.each, trained * TOP)
            if metric.of
            else trained * self.most[name]
            for name, metric in self.metrics.items()
        }
        for name, most in bounds.items():
            if of[name] > most:
                value, top = (each / self._scale(name) for each in (of[name], most))
                raise UpdateError(
                    f"{summands} honest clients cannot count {value:g} `{name}`: at most {top:g}",
                    IMPOSSIBLE,
                )

    def metrics_of(self, sums: Sequence[int]) -> dict[str, float]:
        """Summed counters by name, in their own units."""
        return {name: n / self._scale(name) for name, n in zip(self.names, sums, strict=True)}

    def _scale(self, name: str) -> int:
        return self.metrics[name].scale if name in self.metrics else 1


def limits_of(plan: Plan, instruction: Instruction) -> Limits:
    """What the plan lets one client count in a round."""
    local = plan.local
    examples = min(MOST_ROWS * local.epochs, TOP)
    if local.max_steps:
        examples = min(examples, local.max_steps * local.batch_size)
    evaluated = instruction.evaluate and plan.evaluation.holdout > 0
    metrics = plan.task.METRICS
    seconds = plan.cohort.deadline_s * metrics["train_seconds"].scale
    return Limits(
        metrics=metrics,
        most={
            "examples": examples,
            "eval_examples": MOST_ROWS if evaluated else 0,
            "train_seconds": math.floor(min(seconds, TOP)),
        },
    )
