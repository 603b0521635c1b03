"""The report's sections on what devices gain by a part of their own, and on what was forgotten."""

from __future__ import annotations

from typing import Any

from protocol.tasks.base import Quality
from simulations.clients import named
from simulations.plots import change_chart

Json = dict[str, Any]
TRAININGS = ("alone", "federated", "personal")
DRAWN = 40  # devices of a chart at most
OWN = {
    "column": "test rows that name the device",
    "labels": "test rows with its labels, each label as often as among the device's own rows",
    "values": "test rows whose values are spread as those of the device",
    "all": "all test rows: nothing but chance sets the devices apart",
}


def personal(yardsticks: Json, clients: Json | None, measure: Quality) -> Json | None:
    """Each device's quality on its own test rows before and after its own training, and their mean."""
    measured: Json | None = yardsticks.get("personal")
    if not measured:
        return None
    per_client = measured["per_client"]
    dots = [
        (named(name, clients), measure.drawn(each["federated"]), measure.drawn(each["personal"]))
        for name, each in per_client.items()
    ]
    worst = sorted(dots, key=lambda dot: -dot[1] if measure.higher_is_better else dot[1])[-DRAWN:]
    which = "each device" if len(worst) == len(dots) else f"the {DRAWN} devices served worst"
    better = "" if measure.higher_is_better else ": lower is better"
    title = f"Test {measure.title} of {which} on its own test rows{better}"

    def row(name: str, entry: Json, figures: Json) -> list[object]:
        three = [_shown(measure, figures.get(key)) for key in TRAININGS]
        return [name, entry.get("rows", ""), entry.get("test_rows", ""), *three]

    return {
        "own": OWN[measured["by"]],
        "better": sum(_gain(measure, each) > 0 for each in per_client.values()),
        "worse": sum(_gain(measure, each) < 0 for each in per_client.values()),
        "chart": change_chart(
            title, worst[::-1], names=("federated", "personal"), unit=measure.UNIT
        ),
        "mean": row(f"mean of {len(per_client)} devices", {}, measured["mean"]),
        "rows": [row(named(name, clients), each, each) for name, each in per_client.items()],
    }


def forgetting(entries: list[Json] | None, measure: Quality) -> list[list[object]]:
    """Of each run before: its test rows, and the quality on them then and now."""
    return [
        [
            entry["run"],
            entry.get("rows", ""),
            _shown(measure, entry.get("then")),
            _shown(measure, entry.get("now")),
            entry.get("why") or _change(measure, entry["forgotten"]),
        ]
        for entry in entries or []
    ]


def _gain(measure: Quality, figures: Json) -> float:
    gain: float = figures["personal"] - figures["federated"]
    return gain if measure.higher_is_better else -gain


def _change(measure: Quality, forgotten: float) -> str:
    points = " points" if measure.UNIT else ""
    return f"{abs(measure.drawn(forgotten)):.2f}{points} {'worse' if forgotten > 0 else 'better'}"


def _shown(measure: Quality, value: float | None) -> str:
    if value is None:
        return ""
    return f"{measure.drawn(value):.2f}{measure.UNIT.replace(' %', '%')}"
