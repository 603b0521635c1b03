"""A sweep as a table for people, and as an HTML page with a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from protocol.errors import printable
from simulations.compare import shown_figure
from simulations.page import render
from simulations.plots import dot_chart
from simulations.sweep import QUALITIES, higher_is_better, quality_name

Json = dict[str, Any]
LONGEST_NAME = 34  # of a row of the plot
COSTS = {
    "upload_bytes_per_client_round": "bytes up",
    "adapter_sent_bytes": "bytes to a device",
    "seconds": "seconds",
}


def sweep_table(rows: Sequence[Json]) -> Table:
    """What was run, the best first."""
    heads, lines = _cells(rows)
    shown = Table(*heads)
    for line in lines:
        shown.add_row(*map(printable, line))
    return shown


def sweep_page(name: str, rows: Sequence[Json]) -> str:
    """The page."""
    heads, lines = _cells(rows)
    quality = quality_name(rows)
    known = QUALITIES.get(quality)
    drawn, unit = (known.drawn, known.UNIT) if known else (float, "")
    dots = [
        (
            _shortened(settings_text(row["settings"])),
            drawn(figure["mean"]),
            drawn(figure["spread"] or 0.0),
        )
        for row in rows
        if (figure := row["figures"].get(quality))
    ]
    better = "higher" if higher_is_better(rows) else "lower"
    return render(
        "sweep.html",
        title=f"{name}: a sweep",
        about=[f"{len(rows)} cells, {sum(len(row['seeds']) for row in rows)} runs."],
        heads=heads,
        rows=lines,
        title_of_plot=f"{quality}: {better} is better",
        plot=dot_chart(f"{quality} of each cell", dots, unit=unit),
        refused=[[settings_text(row["settings"]), row["reason"]] for row in rows if row["reason"]],
        runs=[
            [
                settings_text(row["settings"]),
                ", ".join(map(str, row["seeds"])),
                " ".join(row["runs"]),
            ]
            for row in rows
            if row["runs"]
        ],
    )


def settings_text(settings: Mapping[str, str]) -> str:
    """``adapter.rank=4 rule.name=mean``."""
    return " ".join(f"{key.removeprefix('plan.')}={value}" for key, value in settings.items())


def _cells(rows: Sequence[Json]) -> tuple[list[str], list[list[str]]]:
    """Heads, and a line for each cell that was run."""
    keys = list(rows[0]["settings"]) if rows else []
    quality = quality_name(rows)
    heads = [*(key.removeprefix("plan.") for key in keys), quality, *COSTS.values()]
    lines = []
    for row in rows:
        if row["seeds"]:
            figures = row["figures"]
            costs = [shown_figure(key, figures.get(key)) for key in COSTS]
            shown = [row["settings"][key] for key in keys]
            lines.append([*shown, shown_figure(quality, figures.get(quality)), *costs])
    return heads, lines


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"
