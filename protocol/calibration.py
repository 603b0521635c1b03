"""Temperature scaling: one number that makes a classifier's probabilities as sure as it is right. (P-5.5)

Guo et al. 2017 (arXiv 1706.04599): the logits are divided by a temperature, fitted on held-out rows; no label
changes. The loss is convex in the inverse temperature, so its zero slope is found by bisection. As Platt
(1999) proposes, no target is quite certain: rows that are all right would otherwise ask for temperature 0.
Few rows would then make a model that is rightly sure less so, although none of them speaks against it: a
temperature that does not lower the rows' own loss is not taken.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

LEAST, MOST = 0.05, 20.0  # temperatures
HALVINGS, DIGITS, BINS = 60, 4, 15
Logits = npt.NDArray[np.floating]  # (rows, labels)
Share = Annotated[float, Field(ge=0, le=1)]
Loss = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Calibration(BaseModel):
    """``calibration`` of ``release.json``: over ``rows`` held-out rows, before and after.

    ``nll`` is the mean negative logarithm of the right label's probability (nats); ``ece`` the expected
    calibration error of the likeliest label over 15 equal bins.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    temperature: Annotated[float, Field(ge=LEAST, le=MOST)]
    rows: Annotated[int, Field(gt=0, lt=2**53)]
    nll_before: Loss
    nll_after: Loss
    ece_before: Share
    ece_after: Share


def calibrate(logits: Logits, labels: npt.NDArray[np.integer]) -> Calibration | None:
    """Fit the temperature on ``logits`` (rows, labels) and the right ``labels`` (rows,).

    It stays 1 where the rows' loss (``nll``, to six digits) would not fall.
    None without a row, with fewer than two labels, or with logits that are not finite: nothing can be fitted.
    """
    scores = np.asarray(logits, np.float64)
    if not len(scores) or scores.shape[1] < 2 or not np.isfinite(scores).all():
        return None
    temperature = min(max(round(1.0 / _inverse(scores, labels), DIGITS), LEAST), MOST)
    before, after = probabilities(scores, 1.0), probabilities(scores, temperature)
    if not _nll(after, labels) < _nll(before, labels):
        temperature, after = 1.0, before
    return Calibration(
        temperature=temperature,
        rows=len(scores),
        nll_before=_nll(before, labels),
        nll_after=_nll(after, labels),
        ece_before=expected_error(before, labels),
        ece_after=expected_error(after, labels),
    )


def probabilities(logits: Logits, temperature: float) -> npt.NDArray[np.float64]:
    """The softmax of ``logits / temperature`` by row, (rows, labels)."""
    scaled = np.asarray(logits, np.float64) / temperature
    if not scaled.size:
        return scaled
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    shares: npt.NDArray[np.float64] = powers / powers.sum(-1, keepdims=True)
    return shares


def expected_error(shares: npt.NDArray[np.float64], labels: npt.NDArray[np.integer]) -> float:
    """How far, on average, the likeliest label's probability is from how often it is right, 0..1."""
    sure, right = shares.max(-1), shares.argmax(-1) == labels
    bins = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    apart = np.bincount(bins, weights=sure, minlength=BINS)
    apart -= np.bincount(bins, weights=right, minlength=BINS)
    return min(1.0, round(float(np.abs(apart).sum()) / len(shares), 6))


def _inverse(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.integer]) -> float:
    """The inverse temperature at which the loss has no slope, within the bounds."""
    rows, count = scores.shape
    doubt = 1.0 / (rows + 2)  # of every target, shared by the other labels
    targets = np.full(scores.shape, doubt / (count - 1))
    targets[np.arange(rows), labels] = 1.0 - doubt
    wanted = float((targets * scores).sum())

    def slope(inverse: float) -> float:
        return float((probabilities(scores, 1.0 / inverse) * scores).sum()) - wanted

    low, high = 1.0 / MOST, 1.0 / LEAST
    if slope(low) >= 0:
        return low
    if slope(high) <= 0:
        return high
    for _ in range(HALVINGS):  # of the logarithm: both ends are equally far from 1
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(np.sqrt(low * high))


def _nll(shares: npt.NDArray[np.float64], labels: npt.NDArray[np.integer]) -> float:
    right = shares[np.arange(len(shares)), labels]
    return round(float(-np.log(np.maximum(right, np.finfo(np.float64).tiny)).mean()), 6)
