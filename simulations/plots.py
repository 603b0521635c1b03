"""Small charts as inline SVG: nothing to install, nothing fetched, readable in light and dark.

Colours are CSS variables of the page. Every chart carries its title for screen readers and, beside
it, the table of its figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from simulations.thinning import MOST_BARS, MOST_DOTS, mean_of, spans, thinned

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 76, 165, 14, 34
NAMES = 240  # where the scale of a chart with a name for each row begins


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A series of (x, y) points; ``y`` alone at one height is a reference line."""

    name: str
    points: tuple[tuple[float, float], ...]
    css: str
    dashed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """An area between two heights over the whole width."""

    name: str
    low: float
    high: float


class _Frame:
    """From data to pixels."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]) -> None:
        self.x0, x1 = x_range
        self.heights = _round_heights(*y_range)
        self.y0, y1 = self.heights[0], self.heights[-1]
        self._xs = (WIDTH - LEFT - RIGHT) / ((x1 - self.x0) or 1)
        self._ys = (HEIGHT - TOP - BOTTOM) / ((y1 - self.y0) or 1)

    def x(self, value: float) -> float:
        return round(LEFT + (value - self.x0) * self._xs, 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - self.y0) * self._ys, 1)

    def axes(self, ticks: Sequence[float], unit: str) -> list[str]:
        parts = []
        for value in self.heights:
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
            label = escape(_height(value, self.heights[1] - self.heights[0]) + unit)
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{label}</text>')
        for tick in _thinned(ticks):
            x = self.x(tick)
            parts.append(
                f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{number(tick)}</text>'
            )
        return parts


def _round_heights(low: float, high: float) -> list[float]:
    """Four to eight grid heights around ``low`` and ``high``, multiples of 1, 2, 2.5 or 5 times 10^k."""
    rough = (high - low) / 4 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(
        power * nice for nice in (1.0, 2.0, 2.5, 5.0, 10.0) if power * nice >= rough * 0.999
    )
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * number for number in range(first, last + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    band: Band | None = None,
    unit: str = "",
    enlarged: bool = False,
) -> Markup:
    """Lines over rounds, labelled at their right end. ``enlarged``: the heights begin where the lines do."""
    points = [point for line in lines for point in line.points]
    if not points:
        return Markup("")
    xs = sorted({x for x, _ in points})
    heights = [y for _, y in points] + ([band.low, band.high] if band else [])
    lowest = min(heights) if enlarged else min(0.0, *heights)
    highest = max(heights)
    frame = _Frame((min(xs), max(xs)), (lowest, highest if highest > lowest else lowest + 1.0))
    parts = frame.axes(xs, unit)
    if frame.y0 > 0:
        begins = _height(frame.y0, frame.heights[1] - frame.y0) + unit
        parts.append(_text(LEFT + 4, HEIGHT - BOTTOM - 5, f"heights begin at {begins}, not at 0"))
    if band:
        top, height = frame.y(band.high), max(2.0, frame.y(band.low) - frame.y(band.high))
        parts.append(
            f'<rect class="band" x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" height="{height}"/>'
        )
    labels: list[tuple[float, str, str]] = []
    for line in lines:
        drawn = thinned(line.points)
        path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in drawn)
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        parts.append(f'<polyline class="line {line.css}" points="{path}"{dash}/>')
        if not line.dashed and len(drawn) <= MOST_DOTS:
            parts += [
                f'<circle class="dot {line.css}" cx="{frame.x(x)}" cy="{frame.y(y)}" r="3"/>'
                for x, y in drawn
            ]
        labels.append((frame.y(line.points[-1][1]), line.name, line.css))
    taken = -99.0
    for y, name, css in sorted(labels):
        taken = max(y + 4, taken + 19)
        parts.append(
            f'<text class="label {css}" x="{WIDTH - RIGHT + 8}" y="{taken}">{escape(name)}</text>'
        )
    return _svg(title, parts)


def bar_chart(
    title: str,
    xs: Sequence[float],
    series: Sequence[tuple[str, str, Sequence[float]]],
    *,
    unit: str = "",
) -> Markup:
    """Stacked bars; ``series`` holds (name, css class, one height per x). Of many, each is of several."""
    if not xs:
        return Markup("")
    pieces = spans(len(xs), MOST_BARS)
    together = len(pieces[0])
    if together > 1:
        title = f"{title}; each bar is the mean of {together} rounds"
        xs = [mean_of(xs, piece) for piece in pieces]
        series = [(name, css, [mean_of(v, piece) for piece in pieces]) for name, css, v in series]
    totals = [sum(values[i] for _, _, values in series) for i in range(len(xs))]
    edge = 0.6 * together
    frame = _Frame((min(xs) - edge, max(xs) + edge), (0.0, max(totals) or 1.0))
    width = max(1.0, (frame.x(1) - frame.x(0)) * together * 0.8)
    parts = frame.axes([math.floor(x) for x in xs] if together > 1 else xs, unit)
    below = [0.0] * len(xs)
    for _, css, values in series:
        for index, x in enumerate(xs):
            if values[index]:
                top = frame.y(below[index] + values[index])
                height = round(frame.y(below[index]) - top, 1)
                parts.append(
                    f'<rect class="bar {css}" x="{round(frame.x(x) - width / 2, 1)}" y="{top}" '
                    f'width="{round(width, 1)}" height="{height}"/>'
                )
                below[index] += values[index]
    for row, (name, css, _) in enumerate(series):
        y = TOP + 12 + 20 * row
        parts.append(
            f'<rect class="bar {css}" x="{WIDTH - RIGHT + 8}" y="{y - 9}" width="10" height="10"/>'
        )
        parts.append(f'<text x="{WIDTH - RIGHT + 24}" y="{y}">{escape(name)}</text>')
    return _svg(title, parts)


def dot_chart(title: str, rows: Sequence[tuple[str, float, float]], *, unit: str = "") -> Markup:
    """A row each: its name, a dot at its value and a line of its spread to both sides; one scale for all."""
    if not rows:
        return Markup("")
    ends = [value + sign * spread for _, value, spread in rows for sign in (-1, 1)]
    frame = _Rows(ends, len(rows))
    parts = frame.axes([name for name, _, _ in rows], unit)
    for row, (_, value, spread) in enumerate(rows):
        if spread:
            parts.append(frame.line(value - spread, value + spread, row))
        parts.append(frame.dot(value, row, "c1"))
    return _svg(title, parts, height=frame.bottom + 30)


def change_chart(
    title: str,
    rows: Sequence[tuple[str, float, float]],
    *,
    names: tuple[str, str],
    unit: str = "",
) -> Markup:
    """A row each: its name, a dot before and one after, with a line between; ``names``: of the two dots."""
    if not rows:
        return Markup("")
    frame = _Rows([value for _, *both in rows for value in both], len(rows), top=TOP + 20)
    parts = frame.axes([name for name, _, _ in rows], unit)
    for css, name, x in zip(("c3", "c1"), names, (NAMES, NAMES + 200), strict=True):
        parts.append(f'<circle class="dot {css}" cx="{x}" cy="{TOP}" r="4"/>')
        parts.append(_text(x + 10, TOP + 4, name))
    for row, (_, before, after) in enumerate(rows):
        parts.append(frame.line(before, after, row))
        parts += [frame.dot(before, row, "c3"), frame.dot(after, row, "c1")]
    return _svg(title, parts, height=frame.bottom + 30)


class _Rows:
    """From values and numbers of rows to pixels."""

    HEIGHT = 22

    def __init__(self, values: Sequence[float], rows: int, *, top: int = TOP) -> None:
        low, high = min(values), max(values)
        self._scale = _round_heights(low, high if high > low else low + 1.0)
        self._top, self.bottom = top, top + self.HEIGHT * rows

    def x(self, value: float) -> float:
        first, last = self._scale[0], self._scale[-1]
        return round(NAMES + (value - first) / (last - first) * (WIDTH - NAMES - 40), 1)

    def y(self, row: int) -> int:
        return self._top + self.HEIGHT * row + self.HEIGHT // 2

    def axes(self, names: Sequence[str], unit: str) -> list[str]:
        parts, step = [], self._scale[1] - self._scale[0]
        for value in self._scale:
            x, label = self.x(value), escape(_height(value, step) + unit)
            parts.append(
                f'<line class="grid" x1="{x}" x2="{x}" y1="{self._top}" y2="{self.bottom}"/>'
            )
            parts.append(
                f'<text x="{x}" y="{self.bottom + 18}" text-anchor="middle">{label}</text>'
            )
        for row, name in enumerate(names):
            y = self.y(row) + 4
            parts.append(f'<text x="{NAMES - 10}" y="{y}" text-anchor="end">{escape(name)}</text>')
        return parts

    def line(self, start: float, end: float, row: int) -> str:
        x1, x2, y = self.x(start), self.x(end), self.y(row)
        return f'<line class="line c1" x1="{x1}" x2="{x2}" y1="{y}" y2="{y}"/>'

    def dot(self, value: float, row: int, css: str) -> str:
        return f'<circle class="dot {css}" cx="{self.x(value)}" cy="{self.y(row)}" r="4"/>'


def _height(value: float, step: float) -> str:
    """A height on an axis, with as many digits as tell it from the next."""
    digits = max(0, -math.floor(math.log10(step)))
    if abs(step * 10**digits - round(step * 10**digits)) > 1e-6:  # 0.25: one more
        digits += 1
    return f"{value:,.{digits}f}" if digits < 7 else f"{value:.3g}"


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x}" y="{y}">{escape(text)}</text>'


def number(value: float) -> str:
    """Short: 12,345 or 0.123 or 4.2e-07."""
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return (
        f"{value:.2g}"
        if abs(value) < 0.01
        else f"{value:,.3g}"
        if abs(value) < 1000
        else f"{value:,.0f}"
    )


def cell(value: object) -> str:
    """What a table shows of a value."""
    return (
        number(value)
        if isinstance(value, float)
        else f"{value:,}"
        if type(value) is int
        else str(value)
    )


def _thinned(ticks: Sequence[float]) -> list[float]:
    step = max(1, -(-len(ticks) // 12))
    return list(ticks)[::step]


def _svg(title: str, parts: Sequence[str], height: int = HEIGHT) -> Markup:
    return Markup(  # noqa: S704 every text in it is escaped
        f'<figure><figcaption>{escape(title)}</figcaption><div class="wide">'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg></div></figure>"
    )
