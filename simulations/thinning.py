"""Long runs on a page: so few marks and rows that a browser shows it at once, whatever the rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Point = tuple[float, float]
MOST_POINTS, MOST_DOTS, MOST_BARS, MOST_SQUARES, MOST_ROWS = 400, 120, 120, 128, 400


def thinned(points: Sequence[Point], *, most: int = MOST_POINTS) -> list[Point]:
    """At most ``most`` of ``points``, in their order: first, last, the lowest and highest of each span.

    So a line keeps its peaks.
    """
    if len(points) <= most:
        return list(points)
    inner = points[1:-1]
    kept = [points[0]]
    for span in spans(len(inner), (most - 2) // 2):
        places = sorted(
            {
                min(span, key=lambda at: inner[at][1]),
                max(span, key=lambda at: inner[at][1]),
            }
        )
        kept += [inner[at] for at in places]
    return [*kept, points[-1]]


def spans(count: int, most: int) -> list[range]:
    """0 to ``count`` in at most ``most`` pieces of one length; the last may be shorter."""
    size = max(1, -(-count // most))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def mean_of(values: Sequence[float], span: range) -> float:
    """Of the values in a span."""
    return sum(values[at] for at in span) / len(span)


def shown(rows: Sequence[Any], most: int = MOST_ROWS) -> tuple[Sequence[Any], int, Sequence[Any]]:
    """The rows of a table or list that are shown: first ones, how many are left out, last ones."""
    if len(rows) <= most:
        return rows, 0, []
    half = most // 2
    return rows[:half], len(rows) - 2 * half, rows[-half:]
