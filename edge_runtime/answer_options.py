"""What somebody who asks wants to be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.errors import DataError
from protocol.rows.read import Text


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerOptions:
    """What an answer is to hold: the ``top`` likeliest labels, and none that is too unsure to be given.

    ``reject_below``: a probability; where the likeliest label's is lower, the answer is rejected.
    """

    top: int = 1
    reject_below: float = 0.0


LIKELIEST = AnswerOptions()


def verify_texts(texts: Sequence[Text], *, pairs: bool) -> None:
    """Texts are what a release was trained on: pairs, or none of them. Raises DataError."""
    if any(isinstance(text, str) == pairs for text in texts):
        raise DataError(
            "the release in use answers pairs of texts, and single ones were given"
            if pairs
            else "the release in use answers single texts, and pairs were given",
            "give each text its second one" if pairs else "leave the second texts out",
        )
