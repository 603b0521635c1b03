"""The report's sections on quality: by round, by label and by client, beside both yardsticks."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from protocol.tasks.base import Quality
from simulations.page import details
from simulations.plots import Band, Line, line_chart, table

Json = dict[str, Any]
Point = tuple[float, float]
TRAININGS = (("federated", "federated"), ("pooled", "all in one place"), ("alone", "alone"))
WORST = 10  # labels that stand in the open


def quality(
    evaluations: list[Json], yardsticks: Json, measure: Quality, test_rows: int | None
) -> str:
    """The task's quality and loss per round, each whole and enlarged at its end, and their figures."""
    if not evaluations:
        return "<p>No evaluation was recorded.</p>"
    return (
        _curve(evaluations, yardsticks, measure, test_rows)
        + _loss(evaluations, yardsticks)
        + details(_figures(evaluations, yardsticks, measure))
    )


def _curve(
    evaluations: list[Json], yardsticks: Json, measure: Quality, test_rows: int | None
) -> str:
    points = tuple((float(e["round"]), 100 * float(e[measure.name])) for e in evaluations)
    better = "" if measure.higher_is_better else ": lower is better"
    lines, band = [Line(name="federated", points=points, css="c1")], None
    pooled, alone = yardsticks.get("pooled"), yardsticks.get("alone")
    if pooled:
        lines.append(_level("all in one place", 100 * float(pooled[measure.name]), points, "c2"))
    if alone:
        lines.append(_level("alone, mean", 100 * float(alone["mean"]), points, "c3"))
        each = [100 * float(value) for value in alone["per_client"].values()]
        band = Band(name="alone, range", low=min(each), high=max(each))
    html = line_chart(
        f"Test {measure.title} per round against both yardsticks{better}",
        lines,
        band=band,
        unit=" %",
    )
    html += "<p>The shaded band is the range of devices on their own.</p>" if band else ""
    level = lines[1].points[0][1] if pooled else None
    # a share of rows has limits that follow from their number
    rows = test_rows if measure.name == "accuracy" else None
    return html + _enlarged_quality(points, level, rows)


def wilson(share: float, rows: int) -> tuple[float, float]:
    """95 % limits of a share seen in ``rows`` trials: Wilson's score interval (1927)."""
    z2 = 1.96**2
    middle = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    root = math.sqrt(share * (1 - share) / rows + z2 / (4 * rows * rows))
    half = 1.96 * root / (1 + z2 / rows)
    return max(0.0, middle - half), min(1.0, middle + half)


def _enlarged_quality(points: tuple[Point, ...], pooled: float | None, rows: int | None) -> str:
    last, band, said = points[-1][1], None, ""
    if rows:
        low, high = wilson(last / 100, rows)
        band = Band(name="", low=100 * low, high=100 * high)
        said = (
            f"<p>The shaded band is what the choice of {rows:,} test rows alone explains of the last round's "
            f"accuracy (95 %: {100 * low:.1f} to {100 * high:.1f} %).</p>"
        )
    html = _enlarged("The end of it, enlarged", points, pooled, least=1.0, unit=" %", band=band)
    return html + said if html else ""


def _loss(evaluations: list[Json], yardsticks: Json) -> str:
    points = tuple((float(e["round"]), float(e["loss"])) for e in evaluations if "loss" in e)
    if not points:
        return ""
    pooled = yardsticks.get("pooled", {}).get("loss")
    lines = [Line(name="federated", points=points, css="c1")]
    if pooled is not None:
        lines.append(_level("all in one place", float(pooled), points, "c2"))
    html = line_chart("Test loss per round, of a row: lower is better", lines)
    return html + _enlarged("The end of the loss, enlarged", points, pooled, least=0.02, unit="")


def _level(name: str, height: float, points: tuple[Point, ...], css: str) -> Line:
    ends = (points[0][0], points[-1][0])
    return Line(name=name, points=tuple((x, height) for x in ends), css=css, dashed=True)


def _enlarged(
    title: str,
    points: tuple[Point, ...],
    pooled: float | None,
    *,
    least: float,
    unit: str,
    band: Band | None = None,
) -> str:
    """The last rounds on heights of their own; nothing where there are no two rounds to see."""
    last = points[-1][1]
    apart = max(least, 0.0 if pooled is None else abs(pooled - last))
    tail = list(points[-2:])
    for point in reversed(points[:-2]):
        if abs(point[1] - last) > 2 * apart:
            break
        tail.insert(0, point)
    heights = [y for _, y in tail] + ([] if pooled is None else [pooled])
    if len(tail) < 2 or max(heights) - min(heights) > max(heights) / 2:
        return ""  # the whole of it shows as much
    end = tuple(tail)
    lines = [Line(name="federated", points=end, css="c1")]
    if pooled is not None:
        lines.append(_level("all in one place", pooled, end, "c2"))
    return line_chart(title, lines, band=band, unit=unit, enlarged=True)


def _figures(evaluations: list[Json], yardsticks: Json, measure: Quality) -> str:
    rows: list[list[object]] = [
        [f"round {e['round']}", *_three(e.get(measure.name), e.get("loss"), e.get("macro_f1"))]
        for e in evaluations
    ]
    if pooled := yardsticks.get("pooled"):
        three = _three(pooled[measure.name], pooled.get("loss"), pooled.get("macro_f1"))
        rows.append(["all data in one place", *three])
    if alone := yardsticks.get("alone"):
        each = [float(value) for value in alone["per_client"].values()]
        three = _three(alone["mean"], alone.get("loss"), alone.get("macro_f1"))
        rows.append([f"alone: mean of {len(each)} devices", *three])
        rows.append(["alone: worst and best device", f"{min(each):.2%} to {max(each):.2%}", "", ""])
    return table(["", measure.title, "loss a row", "macro-F1"], rows)


def _three(quality: float | None, loss: float | None, f1: float | None) -> list[str]:
    return [_share(quality), "" if loss is None else f"{loss:.4f}", _share(f1)]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def by_label(per_label: Json | None) -> str:
    """Every label's test figures; the worst in the open."""
    if not per_label:
        return "<p>Not measured.</p>"
    present = [pair for pair in TRAININGS if any(pair[0] in entry for entry in per_label.values())]
    head = ["label", "test rows"]
    for _, name in present:
        head += [f"{name}: right", "F1", "loss"]

    def row(label: str) -> list[object]:
        entry = per_label[label]
        cells: list[object] = [label, entry["rows"]]
        for key, _ in present:
            found = entry.get(key, {})
            loss = found.get("loss")
            cells += [_share(found.get("recall")), _share(found.get("f1"))]
            cells.append("" if loss is None else f"{loss:.3f}")
        return cells

    ordered = sorted(
        per_label, key=lambda label: per_label[label].get("federated", {}).get("f1", 0)
    )
    if len(ordered) <= WORST:
        return table(head, [row(label) for label in ordered])
    worst = table(head, [row(label) for label in ordered[:WORST]])
    said = f"<p>{len(ordered)} labels; the {WORST} with the lowest federated F1 first.</p>{worst}"
    return said + details(table(head, [row(label) for label in sorted(per_label)]), "all labels")


def by_client(per_client: Json | None, column: str | None) -> str:
    """Every client by its name: what it holds, and how it is served."""
    if not per_client:
        return "<p>Not recorded: no simulation made these clients.</p>"
    present = [pair for pair in TRAININGS if any(pair[0] in entry for entry in per_client.values())]
    head = ["client", *([column] if column else []), "rows", "labels"]
    head += [name for _, name in present]
    rows: list[list[object]] = [
        [
            name,
            *([entry["value"]] if column else []),
            entry["rows"],
            "" if entry.get("labels") is None else entry["labels"],
            *(_share(entry.get(key)) for key, _ in present),
        ]
        for name, entry in per_client.items()
    ]
    each = f"One device per value of {column}. " if column else ""
    said = "Accuracy on the test rows, each label as often as among the client's own rows."
    return f"<p>{escape(each)}{said if present else ''}</p>" + details(
        table(head, rows), f"{len(rows)} clients"
    )
