"""The report's sections on quality: by round, by label and by client, beside both yardsticks."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from protocol.tasks.base import Quality
from protocol.tasks.image_generation import NoiseError
from simulations.page import render
from simulations.plots import Band, Line, line_chart

Json = dict[str, Any]
Point = tuple[float, float]
TRAININGS = (("federated", "federated"), ("pooled", "all in one place"), ("alone", "alone"))
WORST = 10  # labels that stand in the open


def quality(
    evaluations: list[Json], yardsticks: Json, measure: Quality, test_rows: int | None
) -> Json | None:
    """The task's quality and loss per round, each whole and enlarged at its end, and their figures."""
    if not evaluations:
        return None
    return {
        **_curve(evaluations, yardsticks, measure, test_rows),
        **_loss(evaluations, yardsticks),
        "title": measure.title,
        "beside": "tokens foreseen" if measure.name == "perplexity" else "macro-F1",
        "rows": _figures(evaluations, yardsticks, measure),
    }


def _curve(
    evaluations: list[Json], yardsticks: Json, measure: Quality, test_rows: int | None
) -> Json:
    measured = [(float(e["round"]), float(e[measure.name])) for e in evaluations]
    if before := yardsticks.get("before"):
        measured.insert(0, (0.0, float(before[measure.name])))
    points = tuple((number, measure.drawn(value)) for number, value in measured)
    better = "" if measure.higher_is_better else ": lower is better"
    lines, band, level = [Line(name="federated", points=points, css="c1")], None, None
    if pooled := yardsticks.get("pooled"):
        level = measure.drawn(float(pooled[measure.name]))
        lines.append(_level("all in one place", level, points, "c2"))
    if alone := yardsticks.get("alone"):
        lines.append(_level("alone, mean", measure.drawn(float(alone["mean"])), points, "c3"))
        each = [measure.drawn(float(value)) for value in alone["per_client"].values()]
        band = Band(name="alone, range", low=min(each), high=max(each))
    title = f"Test {measure.title} per round against both yardsticks{better}"
    limits, spread = None, None
    if test_rows and measure.name == "accuracy":  # a share of rows has limits by their number
        low, high = (100 * limit for limit in wilson(points[-1][1] / 100, test_rows))
        limits = f"{test_rows:,}", f"{low:.1f}", f"{high:.1f}"
        spread = Band(name="", low=low, high=high)
    end = "The end of it, enlarged"
    return {
        "curve": line_chart(title, lines, band=band, unit=measure.UNIT),
        "band": band,
        "limits": limits,
        "end": _enlarged(end, points, level, least=1.0, unit=measure.UNIT, band=spread),
    }


def wilson(share: float, rows: int) -> tuple[float, float]:
    """95 % limits of a share seen in ``rows`` trials: Wilson's score interval (1927)."""
    z2 = 1.96**2
    middle = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    root = math.sqrt(share * (1 - share) / rows + z2 / (4 * rows * rows))
    half = 1.96 * root / (1 + z2 / rows)
    return max(0.0, middle - half), min(1.0, middle + half)


def _loss(evaluations: list[Json], yardsticks: Json) -> Json:
    points = tuple((float(e["round"]), float(e["loss"])) for e in evaluations if "loss" in e)
    if not points:
        return {"loss": "", "loss_end": ""}
    pooled = yardsticks.get("pooled", {}).get("loss")
    lines = [Line(name="federated", points=points, css="c1")]
    if pooled is not None:
        lines.append(_level("all in one place", float(pooled), points, "c2"))
    end = "The end of the loss, enlarged"
    return {
        "loss": line_chart("Test loss per round: lower is better", lines),
        "loss_end": _enlarged(end, points, pooled, least=0.02, unit=""),
    }


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
) -> Markup:
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
        return Markup("")  # the whole of it shows as much
    end = tuple(tail)
    lines = [Line(name="federated", points=end, css="c1")]
    if pooled is not None:
        lines.append(_level("all in one place", pooled, end, "c2"))
    return line_chart(title, lines, band=band, unit=unit, enlarged=True)


def _figures(evaluations: list[Json], yardsticks: Json, measure: Quality) -> list[list[object]]:
    rows: list[list[object]] = [[f"round {e['round']}", *_three(measure, e)] for e in evaluations]
    if before := yardsticks.get("before"):
        rows.insert(0, ["before", *_three(measure, before)])
    if pooled := yardsticks.get("pooled"):
        rows.append(["all data in one place", *_three(measure, pooled)])
    if alone := yardsticks.get("alone"):
        each = [float(value) for value in alone["per_client"].values()]
        three = _three(measure, alone | {measure.name: alone["mean"]})
        rows.append([f"alone: mean of {len(each)} devices", *three])
        both = f"{_exact(measure, min(each))} to {_exact(measure, max(each))}"
        rows.append(["alone: least and most", both, "", ""])
    return rows


def _three(measure: Quality, figures: Json) -> list[str]:
    """Quality, loss, and the share that stands beside them: macro-F1, or tokens foreseen."""
    value, loss = figures.get(measure.name), figures.get("loss")
    share = figures.get("token_accuracy" if measure.name == "perplexity" else "macro_f1")
    exact = "" if value is None else _exact(measure, float(value))
    return [exact, "" if loss is None else f"{loss:.4f}", _share(share)]


def _exact(measure: Quality, value: float) -> str:
    if isinstance(measure, NoiseError):
        return measure.figure(value)
    return f"{measure.drawn(value):.2f}{measure.UNIT.replace(' %', '%')}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def by_label(per_label: Json | None) -> Json | None:
    """Every label's test figures; of many the worst apart."""
    if not per_label:
        return None
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
        return {"head": head, "worst": [], "rows": [row(label) for label in ordered]}
    worst, every = map(row, ordered[:WORST]), map(row, sorted(per_label))
    return {"head": head, "worst": list(worst), "rows": list(every)}


def _how(measure: Quality) -> str:
    """On which rows clients are measured."""
    if measure.name in ("perplexity", "noise_error"):
        title = f"{measure.title[0].upper()}{measure.title[1:]}"
        return f"{title} of the rows that each client kept out of its training."
    return "Accuracy on the test rows, each label as often as among the client's own rows."


def by_client(per_client: Json | None, column: str | None, measure: Quality) -> Markup:
    """Every client by its name: what it holds, and how it is served."""
    per_client = per_client or {}
    present = [pair for pair in TRAININGS if any(pair[0] in entry for entry in per_client.values())]
    head = ["client", *([column] if column else []), "rows", "labels"]
    head += [name for _, name in present]
    rows: list[list[object]] = [
        [
            name,
            *([entry["value"]] if column else []),
            entry["rows"],
            "" if entry.get("labels") is None else entry["labels"],
            *(_exact(measure, entry[key]) if key in entry else "" for key, _ in present),
        ]
        for name, entry in per_client.items()
    ]
    return render(
        "clients.html", column=column, head=head, rows=rows, served=_how(measure) if present else ""
    )
