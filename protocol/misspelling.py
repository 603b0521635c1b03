"""The nearest of some names, for a misspelling; bounded, because comparing costs the product of lengths."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

MOST_NAMES, LONGEST = 500, 64  # others are nobody's misspelling


def nearest(word: str, names: Iterable[str], *, cutoff: float = 0.5) -> str | None:
    """One of ``names`` that ``word`` may have meant."""
    if len(word) > LONGEST:
        return None
    import difflib  # only for a misspelling

    short = islice((name for name in names if len(name) <= LONGEST), MOST_NAMES)
    found = difflib.get_close_matches(word, list(short), n=1, cutoff=cutoff)
    return found[0] if found else None
