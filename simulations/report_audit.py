"""The report's section on the audit: verdicts, participants, hashes, and where the adapter comes from."""

from __future__ import annotations

from collections import Counter
from typing import Any

from simulations.clients import named
from simulations.thinning import MOST_SQUARES, spans

Json = dict[str, Any]
PER_ROW, STEP, TOP = (
    16,
    42,
    108,
)  # rounds beside one another, pixels from one to the next, above them
COLOURS = {"ok": "c2", "ok-sampled": "c1", "unverifiable": "c3", "void": "r2", "failed": "r0"}


def audit(
    report: Json | None,
    plan: Json,
    records: list[Json],
    note: Json | None,
    clients: Json | None,
) -> Json | None:
    """``report`` is ``audit.json``: what an auditor's verification of this run said."""
    if report is None:
        return None
    rounds = {int(outcome["round"]): outcome for outcome in report["rounds"]}
    digests = {int(record["round"]): record["adapter_out"] for record in records}
    release = "not released" if note is None else f"round {note['round']}, {note['adapter_digest']}"
    numbers = sorted(rounds)
    pieces = spans(len(numbers), MOST_SQUARES)
    squares = [
        _square(at, [numbers[each] for each in piece], rounds) for at, piece in enumerate(pieces)
    ]
    gaps = [*report["unverified"], *report["assumed"]]
    gaps += [gap for outcome in rounds.values() for gap in outcome["unverified"]]
    return {
        "good": sum(outcome["verdict"] in ("ok", "void") for outcome in rounds.values()),
        "verdict": report["verdict"],
        "faults": [*report["faults"], *(f for each in rounds.values() for f in each["faults"])],
        "base": _cut(report["base"]),
        "plan": _cut(f"{plan['name']}, {report['plan']}"),
        "release": _cut(release),
        "squares": squares,
        "together": len(pieces[0]) if pieces else 1,
        "bottom": TOP + 10 + -(-len(squares) // PER_ROW) * STEP,
        "open": sorted({(gap["what"], gap["leaves"]) for gap in gaps}),
        "not_covered": [
            [file["name"], ", ".join(file["parts"]) or "all of it", file["why"]]
            for file in report.get("not_covered", [])
        ],
        "rounds": [
            [n, each["verdict"], each["clients"], len(each["verified"]), digests.get(n, "")]
            for n, each in sorted(rounds.items())
        ],
        "participants": _participants(records, clients),
        "log": [
            ["log", report["origin"]],
            ["leaves", report["size"]],
            ["root", report["root"]],
            *([f"verdict of an auditor, {line}", ""] for line in report["audits"]),
            *([f"complaint, {line}", ""] for line in report["complaints"]),
        ],
    }


def _square(at: int, numbers: list[int], rounds: dict[int, Json]) -> Json:
    """Of several rounds the worst verdict."""
    x, y = 4 + at % PER_ROW * STEP, TOP + at // PER_ROW * STEP
    verdict = max((rounds[number]["verdict"] for number in numbers), key=_badness)
    css = COLOURS.get(verdict, "r0")
    return {"round": numbers[0], "verdict": verdict, "css": css, "x": x, "y": y}


def _badness(verdict: str) -> int:
    order = list(COLOURS)
    return order.index(verdict) if verdict in order else len(order)


def _cut(value: str) -> str:
    return value if len(value) <= 84 else f"{value[:83]}…"


def _participants(records: list[Json], clients: Json | None) -> list[list[object]]:
    """By the names of the roster, with what simulated ones stand for: rounds used, and why not in others."""
    used = Counter(name for record in records for name in record["used"])
    causes: dict[str, Counter[str]] = {}
    for record in records:
        for absence in record["dropped"]:
            causes.setdefault(absence["client"], Counter())[absence["reason"]] += 1
    return [
        [
            named(name, clients),
            used[name],
            ", ".join(f"{cause}: {count}" for cause, count in sorted(causes.get(name, {}).items())),
        ]
        for name in sorted({*used, *causes})
    ]
