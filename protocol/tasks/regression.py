"""One number within a known range for each text.

The head's one output stands for the range's share, ``(value - low) / (high - low)``: so learning rates and
the bounds of what is counted mean the same whatever the range. (P-3.2, P-11.2)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from protocol.rows.read import Check, number_within
from protocol.section import MOST_VALUE, Column
from protocol.tasks.base import Metric, OutputTask, Quality, metrics_with

Value = Annotated[float, Field(ge=-MOST_VALUE, le=MOST_VALUE, allow_inf_nan=False)]
# `eval_error`: squares of the distance between answer and value, in ranges; answers are cut to the range,
# so a row counts at most 1
METRICS = metrics_with(eval_error=Metric(scale=2**16, of="eval_examples"))


class Regression(OutputTask):
    """What is learnt, and which columns of the local data it is learnt from: one number in a range."""

    KIND: ClassVar[str] = "regression"
    ANSWERS: ClassVar[Literal["range"]] = "range"
    METRICS: ClassVar[Mapping[str, Metric]] = METRICS
    QUALITY: ClassVar[Quality] = Quality(name="nrmse", title="NRMSE", higher_is_better=False)

    kind: Literal["regression"] = Field(description="one number in a range for each text")
    low: Value = Field(description="the least value that a row may have")
    high: Value = Field(description="the greatest")
    target: Column = Field(default="target", description="column with the value")

    @model_validator(mode="after")
    def _range_has_a_length(self) -> Regression:
        if not self.low < self.high:
            raise ValueError(f"high is {self.high:g}, which is not above low, {self.low:g}")
        return self

    @property
    def outputs(self) -> int:
        """One."""
        return 1

    @property
    def column(self) -> str:
        """The column with the value."""
        return self.target

    def check(self) -> Check:
        """A number in the range."""
        return number_within(self.low, self.high)

    @property
    def meaning(self) -> dict[str, Any]:
        """The range."""
        return super().meaning | {"low": self.low, "high": self.high}

    @property
    def said(self) -> str:
        """The range."""
        return f"a number from {self.low:g} to {self.high:g}"

    @property
    def shown(self) -> str:
        """The value."""
        return f"print({self.low!r} + {self.high - self.low!r} * float(model(**inputs).logits))"

    def note(self) -> dict[str, Any]:
        """The range; there are no labels."""
        return super().note() | {"labels": [], "range": (self.low, self.high)}

    @classmethod
    def quality_of(cls, sums: Mapping[str, float]) -> float | None:
        """Root of the mean square of the distance, in ranges."""
        rows = sums.get("eval_examples")
        return math.sqrt(sums["eval_error"] / rows) if rows else None
