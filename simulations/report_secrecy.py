"""The report's sections on secrecy: what the coordinator could see, and what privacy was spent."""

from __future__ import annotations

from typing import Any

from simulations.plots import Line, line_chart

Json = dict[str, Any]


def visible(plan: Json, records: list[Json]) -> Json | None:
    """What the coordinator could and could not see, by the exchange of the records; None: everything."""
    if any(not record["secure"] for record in records):
        return None
    groups = plan["secrecy"].get("groups", 1)
    used = [
        len(members)
        for record in records
        for members in ([g["used"] for g in record["groups"]] or [record["used"]])
        if members
    ]
    private = plan["privacy"]["mechanism"] != "none"
    which = "the sum of a round's updates" if groups == 1 else f"{groups} sums of a round's updates"
    saw = [
        f"{which}: each of {_range(used)} clients, never of fewer "
        f"than {max(3, plan['cohort']['quorum'] // groups)}"
        + (", with the clients' noise in it" if private else ", exactly"),
        "no metrics at all"
        if private
        else "the sums of example counts, losses, training times, failures and cut updates, not one "
        "client's",
        "who was asked, who answered in which phase, when, and from which address",
    ]
    counted = [record for record in records if record.get("failures") is not None]
    return {
        "saw": saw,
        "whole": "a round's clients" if groups == 1 else "a group's clients",
        "lost": sum(len(record.get("lost", {})) for record in records),
        "liars": sorted({name for record in records for name in record.get("liars", [])}),
        "failures": sum(record["failures"] for record in counted),
        "cut": [record["round"] for record in counted if record["clipped_share"] > 0.5],
        "rows": [[r["round"], r["failures"], f"{r['clipped_share']:.0%}"] for r in counted],
    }


def _range(counts: list[int]) -> str:
    low, high = min(counts, default=0), max(counts, default=0)
    return str(low) if low == high else f"{low} to {high}"


def privacy(records: list[Json], failed: list[Json]) -> Json | None:
    """Epsilon per round with everything it hangs on; failed attempts have spent as well."""
    spent = [(record["round"], record["privacy"]) for record in records if record.get("privacy")]
    late = [record["privacy"] for record in failed if record.get("privacy")]
    if not spent:
        return None
    last = max([each for _, each in spent] + late, key=lambda each: int(each["sums"]))
    points = tuple((float(number), float(each["epsilon"])) for number, each in spent)
    ends = (points[0][0], points[-1][0])
    lines = [
        Line(name="spent", points=points, css="c1"),
        Line(
            name="budget",
            points=tuple((x, float(last["budget"])) for x in ends),
            css="c3",
            dashed=True,
        ),
    ]
    chart = line_chart("Largest epsilon of a client, after each round", lines)
    against = (
        "the coordinator, other clients and readers of the adapter"
        if last["mechanism"] == "distributed"
        else "readers of the adapter who do not know who took part; the coordinator saw every update"
    )
    rows = [
        ["unit", last["unit"]],
        ["neighbours", "one client's update set to zero"],
        ["mechanism", last["mechanism"]],
        ["protects against", against],
        ["epsilon, largest of a client", f"{last['epsilon']:.3f}"],
        ["delta", f"{last['delta']:g}"],
        ["budget", f"{last['budget']:g}"],
        ["z, noise of the sum over the clip", f"{last['noise_multiplier']:g}"],
        ["clip, L2 norm of one update", f"{last['clip']:g}"],
        ["honest clients counted on", last["honest"]],
        ["sums opened", last["sums"]],
    ]
    return {"chart": chart, "rows": rows}
