"""The integers beside a masked update, and the most of each that an honest client sends. (P-6.11)

Whoever decodes a sum compares it with these bounds: what no honest clients could have sent together is
no sum. A client cuts its own figures to them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.errors import UpdateError
from protocol.exchange import METRICS, Contribution
from protocol.plan import Plan
from protocol.wire import Instruction

COUNTERS = (
    *METRICS,
    "failures",  # 1 of a client that had nothing to give; its update and metrics are zero
    "clipped",  # 1 of a client whose update was longer than the clip
)
# A counter travels as an integer: itself times this, rounded.
SCALES = {
    "examples": 1,
    "loss_sum": 2**12,
    "eval_examples": 1,
    "eval_correct": 1,
    "train_seconds": 1000,
    "failures": 1,
    "clipped": 1,
}
COUNTER_BITS = 40
MOST_ROWS = 2**24  # of one client, in one epoch
MOST_LOSS = 64 * SCALES["loss_sum"]  # of one row: 64 nats
TOP = 2**COUNTER_BITS - 1
IMPOSSIBLE = "one of its clients, or the coordinator, breaks the rules; the model is unchanged"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that one client counts, as integers that travel; what is not here follows from these."""

    examples: int
    eval_examples: int
    train_seconds: int

    def of_client(self, given: Contribution, *, clipped: bool) -> list[int]:
        """A client's counters in the order of COUNTERS, cut to what is honest.

        Raises UpdateError for a metric that is no number or negative.
        """
        if given.failed:
            return [int(name == "failures") for name in COUNTERS]
        if not all(0 <= given.metrics[name] < math.inf for name in METRICS):
            raise UpdateError(
                "a metric of this client is negative or no number", "lower local.learning_rate"
            )
        count = {name: round(given.metrics[name] * SCALES[name]) for name in METRICS}
        count |= {"failures": 0, "clipped": int(clipped)}
        count["examples"] = min(count["examples"], self.examples)
        count["loss_sum"] = min(count["loss_sum"], count["examples"] * MOST_LOSS, TOP)
        count["eval_examples"] = min(count["eval_examples"], self.eval_examples)
        count["eval_correct"] = min(count["eval_correct"], count["eval_examples"])
        count["train_seconds"] = min(count["train_seconds"], self.train_seconds)
        return [count[name] for name in COUNTERS]

    def verify(self, sums: Sequence[int], summands: int) -> None:
        """Sums that ``summands`` honest clients can have. Raises UpdateError."""
        of = dict(zip(COUNTERS, sums, strict=True))
        trained = summands - of["failures"]  # those who failed count nothing else
        bounds = {
            "failures": summands,
            "clipped": trained,
            "examples": trained * self.examples,
            "loss_sum": min(of["examples"] * MOST_LOSS, trained * TOP),
            "eval_examples": trained * self.eval_examples,
            "eval_correct": of["eval_examples"],
            "train_seconds": trained * self.train_seconds,
        }
        for name, most in bounds.items():
            if of[name] > most:
                value, top = (each / SCALES[name] for each in (of[name], most))
                raise UpdateError(
                    f"{summands} honest clients cannot count {value:g} `{name}`: at most {top:g}",
                    IMPOSSIBLE,
                )

    def metrics_of(self, sums: Sequence[int]) -> dict[str, float]:
        """Summed counters by name, in their own units."""
        return {name: each / SCALES[name] for name, each in zip(COUNTERS, sums, strict=True)}


def limits_of(plan: Plan, instruction: Instruction) -> Limits:
    """What the plan lets one client count in a round."""
    local = plan.local
    examples = min(MOST_ROWS * local.epochs, TOP)
    if local.max_steps:
        examples = min(examples, local.max_steps * local.batch_size)
    evaluated = instruction.evaluate and plan.evaluation.holdout > 0
    return Limits(
        examples=examples,
        eval_examples=MOST_ROWS if evaluated else 0,
        train_seconds=math.floor(min(plan.cohort.deadline_s * SCALES["train_seconds"], TOP)),
    )
