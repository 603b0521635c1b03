"""A client whose rows, training or evaluation fail answers like any other. (P-4.4)

The adapter is the coordinator's choice, and which clients fail on it hangs on their rows: a refusal, an
absence or another size would name the owners of a label without any sum. What went wrong is in this
machine's log.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable

from protocol.errors import FedgeError, UpdateError
from protocol.exchange import Contribution, failed_contribution
from protocol.secagg.primitives import Word

log = logging.getLogger("fedge.client")

ZEROS = "contributed zeros: "  # how the line begins that tells the owner (operations.logs reads it)


def words_or_zeros(
    contribute: Callable[[], Contribution], encode: Callable[[Contribution], Word], *, size: int
) -> Word:
    """The words of a contribution of ``size`` coordinates; those of zeros when anything fails."""
    try:
        given = contribute()
        if given.update.shape != (size,):
            raise UpdateError(
                f"this client's update has shape {given.update.shape}, not ({size},)",
                "run one version of fedge at this site",
            )
        return encode(given)
    except FedgeError as error:
        log.warning("%s%s; %s", ZEROS, error.cause, error.remedy)
    except Exception as error:
        # Not its text: the message of a foreign exception may hold a row.
        name, where = type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
        log.error(
            "%sunexpected %s\nTraceback (most recent call last):\n%s%s", ZEROS, name, where, name
        )
    return encode(failed_contribution(size))
