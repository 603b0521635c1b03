"""A client whose rows, training or evaluation fail answers like any other. (P-4.4)

The adapter is the coordinator's choice, and which clients fail on it hangs on their rows: a refusal, an
absence or another size would name the owners of a label without any sum. What went wrong is in this
machine's log.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from protocol.errors import FedgeError, UpdateError
from protocol.exchange import Contribution, failed_contribution
from protocol.secagg.primitives import Word

log = logging.getLogger("fedge.client")

ZEROS = "contributed zeros: "  # how the line begins that tells the owner (operations.logs reads it)


def contribution_or_zeros(contribute: Callable[[], Contribution], *, size: int) -> Contribution:
    """What ``contribute`` gives, of ``size`` coordinates; zeros when anything fails or is not finite."""
    try:
        given = contribute()
        _verify(given, size)
        # As they come back from a file.
        metrics = {name: float(value) for name, value in given.metrics.items()}
        return replace(given, metrics=metrics)
    except Exception as error:
        _log(error)
    return failed_contribution(size)


def words_or_zeros(given: Contribution, encode: Callable[[Contribution], Word]) -> Word:
    """The words of a contribution; those of zeros when they cannot be made.

    Raises MemoryError: that hangs on no row, and the same contribution may find the room another time.
    """
    try:
        return encode(given)
    except MemoryError:
        raise
    except Exception as error:
        _log(error)
    return encode(failed_contribution(len(given.update)))


def _verify(given: Contribution, size: int) -> None:
    if given.update.shape != (size,):
        raise UpdateError(
            f"this client's update has shape {given.update.shape}, not ({size},)",
            "run one version of fedge at this site",
        )
    if not np.isfinite(given.update).all():
        raise UpdateError("this client's update is not finite", "lower local.learning_rate")
    for name, value in given.metrics.items():
        if not 0 <= value < math.inf:
            raise UpdateError(
                f"this client's metric {name} is not finite, or negative",
                "lower local.learning_rate",
            )


def _log(error: Exception) -> None:
    if isinstance(error, FedgeError):
        log.warning("%s%s; %s", ZEROS, error.cause, error.remedy)
        return
    # Not its text: the message of a foreign exception may hold a row.
    name, where = type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
    log.error("%sunexpected %s\nTraceback (most recent call last):\n%s%s", ZEROS, name, where, name)
