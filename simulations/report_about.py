"""The report's words on a run as a whole: what it is, what to know before one believes it, and its time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from audit.published import Run
from protocol.errors import FedgeError
from protocol.legality import warnings_of
from protocol.plan import plan_from
from protocol.rules import rule_named
from simulations.plots import bar_chart

Json = dict[str, Any]


def about(plan: Json, summary: Json, timings: Json) -> list[str]:
    """Lines below the title: rule, counts and the date, as far as they are on file."""
    rule, server = plan.get("rule", {}), plan.get("server", {})
    lines = [
        f"A federated run, reported by fedge. Method {plan.get('adapter', {}).get('method', 'unknown')}, "
        f"rule {rule.get('name', 'unknown')}, server optimiser "
        f"{server.get('optimizer', 'unknown')}, seed {plan.get('seed', 0)}, {plan.get('rounds')} rounds."
    ]
    if summary.get("rows_test"):
        numbers = "a number of each"
        if summary.get("perplexity_federated"):
            numbers = "the tokens that follow"
        elif summary.get("noise_error_federated"):
            numbers = "images for labels"
        learnt = f"{summary['labels']} labels" if summary["labels"] else numbers
        lines.append(
            f"{summary['clients']:,} clients with {summary['rows_train']:,} rows to train on; "
            f"{summary['rows_test']:,} rows to test on; {learnt}."
        )
    if "started" in timings:
        lines.append(f"From {_date(timings['started'])} to {_date(timings['ended'])} UTC.")
    return lines


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def known(plan: Json, summary: Json, records: list[Json], log: Run | None) -> list[str]:
    """What is insecure about the run, and what its plan was warned of."""
    said = [*_insecure(plan, summary, records), *_warnings(plan, summary, log)]
    return list(dict.fromkeys(said))


def _warnings(plan: Json, summary: Json, log: Run | None) -> list[str]:
    """Those of the run's start; of a run that kept none, those of its plan and the base in its log."""
    if "warnings" in summary:
        return list(summary["warnings"])
    try:
        parsed = plan_from(plan, source="plan.json")
        return [found.line for found in warnings_of(parsed, log.manifest if log else None)]
    except FedgeError:
        return []


def _insecure(plan: Json, summary: Json, records: list[Json]) -> list[str]:
    said = list(summary.get("insecure", []))
    if not said:
        if any(not record.get("secure") for record in records):
            said.append("the exchange is not secure: the coordinator saw every client's update")
        if plan.get("privacy", {}).get("mechanism") == "none":
            said.append("no differential privacy: the adapter may reveal single rows of a device")
    try:
        rule_named(plan["rule"]["name"])
    except (FedgeError, KeyError):
        said.append("the plan's rule is not known to this version")
    return said


def time_spent(records: list[Json], summary: Json, timings: Json) -> Json:
    """Seconds per round, and the parts of the run beside what was forecast; the parts add up."""
    wall = timings.get("rounds", {})
    rounds = [float(r["round"]) for r in records]
    seconds = [
        float(wall.get(str(r["round"]), r["metrics"].get("train_seconds", 0.0))) for r in records
    ]
    return {
        "wall": bool(wall),
        "chart": bar_chart("Seconds per round", rounds, [("seconds", "c1", seconds)], unit=" s"),
        "rows": [[int(x), y] for x, y in zip(rounds, seconds, strict=True)],
        "parts": _parts(summary),
    }


def _parts(summary: Json) -> list[list[object]]:
    parts, expected = summary.get("seconds_by_part"), summary.get("seconds_forecast") or {}
    if not parts:
        return []
    rows: list[list[object]] = [
        [name, f"{seconds:.1f} s", f"{expected[name]:.1f} s" if name in expected else ""]
        for name, seconds in parts.items()
    ]
    whole = sum(expected.values())
    rows.append(["whole run", f"{sum(parts.values()):.1f} s", f"{whole:.1f} s" if expected else ""])
    return rows
