"""A comparison as an HTML page: the table, accuracy and loss per round, and what the settings differ in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from markupsafe import Markup

from simulations.compare import FIGURES, Group, comparison, shown_figure, shown_value
from simulations.page import render
from simulations.plots import Line, line_chart

COLOURS = ("c1", "c2", "c3", "r1", "r0", "r3")  # then again from the first


CURVES = (  # the figure's key, its section, its chart, by how much it is multiplied, its unit
    ("accuracy", "Accuracy per round", "Test accuracy", 100.0, " %"),
    ("nrmse", "NRMSE per round", "Test NRMSE: lower is better", 100.0, " %"),
    ("perplexity", "Perplexity per round", "Test perplexity: lower is better", 1.0, ""),
    ("noise_error", "Noise error per round", "Test noise error: lower is better", 1.0, ""),
    ("loss", "Loss per round", "Test loss a row: lower is better", 1.0, ""),
)


def compare_page(groups: Sequence[Group]) -> str:
    """The page; groups in their order, each in its colour."""
    body = comparison(groups)
    runs = sum(len(group.runs) for group in groups)
    title = " and ".join(dict.fromkeys(group.runs[0].name for group in groups))
    return render(
        "compare.html",
        title=f"{title}: compared",
        about=[
            f"{runs} runs in {len(groups)} groups; runs that differ by their seed alone are one."
        ],
        names=[group["name"] for group in body["groups"]],
        figures=[
            [label, *(shown_figure(key, group["figures"].get(key)) for group in body["groups"])]
            for key, label in FIGURES.items()
            if any(key in group["figures"] for group in body["groups"])
        ],
        curves=[
            (section, _charts(groups, key, chart, scale, unit))
            for key, section, chart, scale, unit in CURVES
            if key == "loss" or any(group.curve(key) for group in groups)
        ],
        differences=[
            [key, *map(shown_value, values)] for key, values in body["differences"].items()
        ],
        runs=[
            [group["name"], str(seed), run]
            for group in body["groups"]
            for seed, run in zip(group["seeds"], group["runs"], strict=True)
        ],
    )


def _charts(groups: Sequence[Group], key: str, title: str, scale: float, unit: str) -> Markup:
    lines, levels = [], []
    for at, group in enumerate(groups):
        css = COLOURS[at % len(COLOURS)]
        curve = group.curve(key)
        if not curve:
            continue
        points = tuple((x, scale * y) for x, y in curve)
        lines.append(Line(name=_short(group.name), points=points, css=css))
        heights = [float(run.pooled[key]) for run in group.runs if key in run.pooled]
        if heights:
            level = scale * sum(heights) / len(heights)
            levels.append((level, points, css))
    if not lines:
        return Markup("")
    lines += [
        Line(
            name="all in one place",
            points=((points[0][0], level), (points[-1][0], level)),
            css=css,
            dashed=True,
        )
        for level, points, css in levels
    ]
    whole = line_chart(f"{title}, mean over the seeds", lines, unit=unit)
    return whole + _enlarged(lines, f"{title}: the last third, enlarged", unit)


def _enlarged(lines: Sequence[Line], title: str, unit: str) -> Markup:
    """Rounds of the last third on heights of their own; nothing where that is less than two rounds."""
    first = math.ceil(2 * max(line.points[-1][0] for line in lines) / 3)
    kept = [
        replace(line, points=tuple((max(x, first), y) for x, y in line.points))
        if line.dashed
        else replace(line, points=tuple(point for point in line.points if point[0] >= first))
        for line in lines
        if line.points[-1][0] > first
    ]
    if all(len(line.points) < 2 for line in kept if not line.dashed):
        return Markup("")
    return line_chart(title, kept, unit=unit, enlarged=True)


def _short(name: str) -> str:
    text = name.partition(", ")[0].partition(" = ")[2].strip('"') or name
    return text if len(text) <= 18 else f"{text[:17]}…"
