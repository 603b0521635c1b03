"""An image for a label: a denoiser is asked for the noise on images of the rows.

What a model is judged by is its error on noise that is known: the mean square of the difference, over the
values of an image. A model that always answers 0 has 1. Lower is better. (P-3.2)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from protocol.media import DRAWN, Medium
from protocol.section import MOST_LABELS, Column, Label
from protocol.tasks.base import Metric, Quality, metrics_with
from protocol.tasks.media import MediaLabelled

MOST_ERROR = 16  # of a row that is measured: what is worse counts as that
# `eval_noise`: of the rows kept out, the mean squares of the noise that is not found, each cut to MOST_ERROR
METRICS = metrics_with(eval_noise=Metric(scale=2**16, of="eval_examples", most=MOST_ERROR))


class NoiseError(Quality):
    """No share: 0 at its best, 1 of one who answers nothing, and there is worse."""

    UNIT: ClassVar[str] = ""

    def figure(self, value: float) -> str:
        """See :class:`Quality`."""
        return f"{value:.4f}"

    def drawn(self, value: float) -> float:
        """See :class:`Quality`."""
        return value


class ImageGeneration(MediaLabelled):
    """What is learnt, and which columns of the local data it is learnt from: to draw images of labels."""

    MEDIUM: ClassVar[Medium] = DRAWN
    KIND: ClassVar[str] = DRAWN.task
    BASE: ClassVar[str] = DRAWN.task
    ANSWERS: ClassVar[Literal["labels", "images"]] = "images"
    METRICS: ClassVar[Mapping[str, Metric]] = METRICS
    QUALITY: ClassVar[Quality] = NoiseError(
        name="noise_error", title="noise error", higher_is_better=False
    )

    kind: Literal["image-generation"] = Field(description="an image for a label")
    labels: list[Label] = Field(
        min_length=2,
        max_length=MOST_LABELS,
        description="what is drawn: a label's place in the list is its class of the base",
    )
    image: Column = Field(
        default="image", description="column with an image's path, from the folder of the rows on"
    )

    @property
    def outputs(self) -> int:
        """There is no head: a label is a class of the base, by its place in the list."""
        return 0

    @property
    def said(self) -> str:
        """What is drawn."""
        return f"images of {len(self.labels)} labels"

    @classmethod
    def quality_of(cls, sums: Mapping[str, float]) -> float | None:
        """Mean over rows of the mean square."""
        rows = sums.get("eval_examples")
        return sums["eval_noise"] / rows if rows else None
