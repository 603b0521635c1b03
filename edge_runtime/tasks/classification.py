"""The likeliest label of each text, and how likely it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.answer_options import AnswerOptions
from edge_runtime.blends.note import AnyNote
from protocol.calibration import Calibration, calibrate, probabilities

HAS_LABELS = True
Logits = npt.NDArray[np.float32]  # (rows, labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A label; ``score`` is its probability at the adapter's temperature. (P-5.5)"""

    label: str
    index: int
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The likeliest label of a text and how likely it is; ``rejected``: too unlikely to be acted on.

    ``top`` are as many labels as were asked for, the likeliest first.
    """

    label: str
    index: int
    score: float
    logits: tuple[float, ...]
    rejected: bool = False
    top: tuple[Choice, ...] = ()

    @property
    def answer(self) -> str:
        """The label."""
        return self.label

    @property
    def is_finite(self) -> bool:
        """Whether it is an answer at all."""
        return math.isfinite(self.score)

    def form(self, options: AnswerOptions) -> dict[str, Any]:
        """As JSON has it: a rejected answer has no label. What was not asked for is not there."""
        document: dict[str, Any] = {"label": self.label, "index": self.index, "score": self.score}
        if options.reject_below > 0:
            document |= {"rejected": self.rejected}
            if self.rejected:
                document |= {"label": None, "index": None}
        if options.top > 1:
            document["top"] = [asdict(choice) for choice in self.top]
        return document

    def cells(self, options: AnswerOptions) -> dict[str, str]:
        """Label, score and, where more were asked for, the others."""
        label = "(rejected)" if self.rejected else self.label
        row = {"label": label, "score": f"{self.score:.3f}"}
        if options.top > 1:
            rest = self.top if self.rejected else self.top[1:]
            row["then"] = ", ".join(f"{choice.label} {choice.score:.3f}" for choice in rest)
        return row


def verify_options(options: AnswerOptions) -> None:
    """Whatever is asked for is met."""


def of_release(outputs: Logits, note: AnyNote, options: AnswerOptions) -> list[Prediction]:
    """Answers of a release's adapter, at its temperature."""
    fit = note.calibration
    temperature = fit.temperature if fit else 1.0
    return answers(outputs, labels=note.labels, options=options, temperature=temperature)


def answers(
    logits: Logits, *, labels: Sequence[str], options: AnswerOptions, temperature: float = 1.0
) -> list[Prediction]:
    """One for each row."""
    return [
        _prediction(row, shares, labels, options)
        for row, shares in zip(logits, probabilities(logits, temperature), strict=True)
    ]


def measured(outputs: Logits, targets: npt.NDArray[np.integer]) -> tuple[float, Calibration | None]:
    """Share of rows classified rightly, and the temperature that fits them."""
    return float((outputs.argmax(-1) == targets).mean()), calibrate(outputs, targets)


def is_right(answer: Prediction, golden: str, within: float) -> bool:
    """Whether it has the label."""
    return answer.label == golden


def _prediction(
    logits: Logits, shares: npt.NDArray[np.float64], labels: Sequence[str], options: AnswerOptions
) -> Prediction:
    """Of one row: ``logits`` and ``shares`` (labels,)."""
    order = np.argsort(-logits, kind="stable")[: max(1, options.top)].tolist()
    top = tuple(Choice(label=labels[at], index=at, score=float(shares[at])) for at in order)
    likeliest = top[0]
    return Prediction(
        label=likeliest.label,
        index=likeliest.index,
        score=likeliest.score,
        logits=tuple(float(value) for value in logits),
        rejected=not likeliest.score >= options.reject_below,
        top=top,
    )
