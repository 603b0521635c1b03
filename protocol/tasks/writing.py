"""What tasks share whose answers are texts: counted in tokens, judged by the perplexity.

The perplexity is exp of the mean loss of a token in nats. (P-3.2)
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from protocol.section import MOST_TOKENS
from protocol.tasks.base import MOST_LOSS, Metric, Quality, TextSection, metrics_with

# `eval_tokens`: tokens that count in the rows kept out; `eval_right`: those that were the likeliest;
# `eval_loss`: the sum of their losses in nats
METRICS = metrics_with(
    eval_tokens=Metric(of="eval_examples", most=MOST_TOKENS),
    eval_right=Metric(of="eval_tokens"),
    eval_loss=Metric(scale=2**10, of="eval_tokens", most=MOST_LOSS),
)


class Perplexity(Quality):
    """Not a share: 1 at its best, and as large as the vocabulary for one who guesses."""

    UNIT: ClassVar[str] = ""

    def figure(self, value: float) -> str:
        """See :class:`Quality`."""
        return f"{value:.2f}"

    def drawn(self, value: float) -> float:
        """See :class:`Quality`."""
        return value

    def share(self, value: float) -> float:
        """The mean likelihood of a token."""
        return 1 / value if value else 0.0

    def bound(self, floor: int) -> int:
        """See :class:`Quality`."""
        return 10**6 // floor if floor else 2**53


class WritingTask(TextSection, ABC):
    """A task of a base that writes text."""

    unanswered: Literal["refuse", "skip"] = Field(
        default="refuse",
        description="a row without an answer, or of which none is within max_length: an error, or left out",
    )
    max_length: Annotated[int, Field(ge=3, le=MOST_TOKENS)] = Field(
        default=256, description="tokens with the special ones; longer texts are cut"
    )

    ANSWERS: ClassVar[Literal["text"]] = "text"
    METRICS: ClassVar[Mapping[str, Metric]] = METRICS
    QUALITY: ClassVar[Quality] = Perplexity(
        name="perplexity", title="perplexity", higher_is_better=False
    )

    @property
    def outputs(self) -> int:
        """There is no head."""
        return 0

    def note(self) -> dict[str, Any]:
        """See :class:`TaskSection`."""
        return {"task": self.kind, "pairs": False, "max_length": self.max_length, "labels": []}

    @classmethod
    def quality_of(cls, sums: Mapping[str, float]) -> float | None:
        """The perplexity of all tokens together."""
        tokens = sums.get("eval_tokens")
        return math.exp(min(sums["eval_loss"] / tokens, MOST_LOSS)) if tokens else None
