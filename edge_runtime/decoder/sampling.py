"""Choosing the next token: pure functions of one row of logits, float32 (vocabulary,).

A token's log-probability, in nats, is the model's own: before temperature and before anything is left out.
Among equal logits the lower token comes first, so that a text does not depend on how a library sorts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.errors import ArtefactError, DataError

Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
FIRST_TRY, WIDER = 64, 16  # likeliest tokens that are sorted, and how many times more when too few
MOST_TEMPERATURE = 100.0
MOST_NAMED = 100  # likeliest tokens that are named beside the chosen one


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are chosen.

    ``temperature`` 0 takes the likeliest; else logits are divided by it, ``top_k`` tokens are kept (0:
    all), and of these the likeliest whose probability reaches ``top_p`` together.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def verify(self) -> None:
        """Raises DataError that names the value which is out of bounds."""
        if not 0 <= self.temperature <= MOST_TEMPERATURE:
            raise DataError(
                f"the temperature is {self.temperature}, not from 0 to {MOST_TEMPERATURE:g}",
                "take 0 for the likeliest token, about 0.7 for variety",
            )
        if self.top_k < 0:
            raise DataError(f"top-k is {self.top_k}", "keep 1 token or more; 0 keeps all")
        if not 0 < self.top_p <= 1:
            raise DataError(f"top-p is {self.top_p}, not above 0 and at most 1", "1 keeps all")


GREEDY = Sampling()


def choose(logits: Logits, sampling: Sampling, rng: np.random.Generator) -> int:
    """The next token. Takes one number from ``rng``, or none where the likeliest is wanted.

    Raises ArtefactError for logits that are NaN, infinite or all minus infinity.
    """
    best = greedy(logits)
    if sampling.temperature == 0:
        return best
    tokens, chances = kept(logits, sampling)
    sums = np.cumsum(chances)
    at = int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))
    return int(tokens[min(at, len(tokens) - 1)])


def greedy(logits: Logits) -> int:
    """The likeliest token. Raises ArtefactError as :func:`choose`."""
    best = int(np.argmax(logits))  # of a row with NaN the first NaN
    if not math.isfinite(logits[best]):
        raise ArtefactError(
            "the base gave logits that are not finite", "fetch the base and its adapter again"
        )
    return best


def kept(logits: Logits, sampling: Sampling) -> tuple[Ids, Floats]:
    """Tokens that may be chosen, likeliest first, and their probabilities, of sum 1.

    Probabilities are after the temperature, which must not be 0. At least one token is kept.
    """
    size, top_p = len(logits), sampling.top_p
    with np.errstate(over="ignore"):  # a tiny temperature leaves one token
        scaled = (logits.astype(np.float64) - float(np.max(logits))) / sampling.temperature
    weights = np.exp(scaled)
    if not sampling.top_k and top_p == 1:
        return np.arange(size), weights / weights.sum()
    most = min(sampling.top_k or size, size)
    # A vocabulary is sorted only as far as top-p asks for.
    tokens = likeliest(logits, most if sampling.top_k else FIRST_TRY)
    whole = weights[tokens].sum() if sampling.top_k else weights.sum()
    while (shares := np.cumsum(weights[tokens]) / whole)[-1] < top_p and len(tokens) < most:
        tokens = likeliest(logits, WIDER * len(tokens))
    if top_p < 1:
        tokens = tokens[: int(np.searchsorted(shares, top_p)) + 1]
    chances = weights[tokens]
    return tokens, chances / chances.sum()


def likeliest(logits: Logits, count: int) -> Ids:
    """The ``count`` likeliest tokens, 1 or more, likeliest first, at most all of them."""
    size = len(logits)
    if count >= size:
        return np.argsort(-logits, kind="stable")
    least = np.partition(logits, size - count)[size - count]
    above = np.flatnonzero(logits >= least)
    return above[np.argsort(-logits[above], kind="stable")][:count]


def log_probabilities(logits: Logits) -> Floats:
    """float64 (vocabulary,), in nats."""
    shifted = logits.astype(np.float64) - float(np.max(logits))
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def named(logits: Logits, token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The token's log-probability, and (token, log-probability) of the ``count`` likeliest."""
    logs = log_probabilities(logits)
    top = likeliest(logits, count) if count else ()
    return float(logs[token]), tuple((int(likely), float(logs[likely])) for likely in top)
