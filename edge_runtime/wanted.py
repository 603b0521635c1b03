"""What somebody who asks wants to be told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What an answer is to hold: the ``top`` likeliest labels, and none that is too unsure to be given.

    ``reject_below``: a probability; where the likeliest label's is lower, the answer is rejected.
    """

    top: int = 1
    reject_below: float = 0.0


ONE = Wanted()
