"""The report's section on the audit: verdicts, participants, hashes, and where the adapter comes from."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import Any

from simulations.clients import named
from simulations.plots import table

Json = dict[str, Any]
PER_ROW, SIDE, GAP, WIDTH = 16, 34, 8, 720
COLOURS = {"ok": "c2", "ok-sampled": "c1", "unverifiable": "c3", "void": "r2", "failed": "r0"}


def audit(
    report: Json | None,
    plan: Json,
    records: list[Json],
    note: Json | None,
    clients: Json | None,
) -> str:
    """``report`` is ``audit.json``: what an auditor's verification of this run said."""
    if report is None:
        return "<p>Not audited: <code>fedge audit verify</code> checks a run from its files.</p>"
    rounds = {int(outcome["round"]): outcome for outcome in report["rounds"]}
    verified = sum(outcome["verdict"] in ("ok", "void") for outcome in rounds.values())
    coverage = f"{verified} of {len(rounds)} rounds verified, round 0 among them"
    faults = [
        *report["faults"],
        *(fault for outcome in rounds.values() for fault in outcome["faults"]),
    ]
    html = f"<p>{coverage}; verdict of the whole: <b>{escape(report['verdict'])}</b>.</p>"
    html += (
        "<p>So says audit.json: <code>fedge audit verify</code> makes a verdict of your own.</p>"
    )
    if faults:
        html += (
            '<ul class="warn">' + "".join(f"<li>{escape(fault)}</li>" for fault in faults) + "</ul>"
        )
    return (
        html
        + _lineage(report, plan, rounds, note)
        + _open(report, rounds)
        + _not_covered(report)
        + _rounds(rounds, records)
        + _participants(records, clients)
        + table(
            ["", ""],
            [
                ["log", report["origin"]],
                ["leaves", report["size"]],
                ["root", report["root"]],
                *([f"verdict of an auditor, {line}", ""] for line in report["audits"]),
                *([f"complaint, {line}", ""] for line in report["complaints"]),
            ],
        )
    )


def _open(report: Json, rounds: dict[int, Json]) -> str:
    """What is not proven, each thing once."""
    unproven = {(gap["what"], gap["leaves"]) for gap in (*report["unverified"], *report["assumed"])}
    unproven |= {
        (gap["what"], gap["leaves"]) for outcome in rounds.values() for gap in outcome["unverified"]
    }
    return table(["not checked, or assumed", "what that leaves unproven"], sorted(unproven))


def _not_covered(report: Json) -> str:
    """Files and claims that the verdict says nothing about."""
    rows = [
        [file["name"], ", ".join(file["parts"]) or "all of it", file["why"]]
        for file in report.get("not_covered", [])
    ]
    html = table(["file or leaf", "what of it", "why the verdict does not cover it"], rows)
    return f"<details><summary>not covered: {len(rows)} files and leaves</summary>{html}</details>"


def _rounds(rounds: dict[int, Json], records: list[Json]) -> str:
    digests = {int(record["round"]): record["adapter_out"] for record in records}
    rows = [
        [
            number,
            outcome["verdict"],
            outcome["clients"],
            len(outcome["verified"]),
            digests.get(number, ""),
        ]
        for number, outcome in sorted(rounds.items())
    ]
    html = table(["round", "verdict", "updates in it", "checks", "adapter"], rows)
    return f"<details><summary>the rounds</summary>{html}</details>"


def _participants(records: list[Json], clients: Json | None) -> str:
    """By the names of the roster, with what simulated ones stand for: rounds used, and why not in others."""
    used = Counter(name for record in records for name in record["used"])
    causes: dict[str, Counter[str]] = {}
    for record in records:
        for absence in record["dropped"]:
            causes.setdefault(absence["client"], Counter())[absence["reason"]] += 1
    rows = [
        [
            named(name, clients),
            used[name],
            ", ".join(f"{cause}: {count}" for cause, count in sorted(causes.get(name, {}).items())),
        ]
        for name in sorted({*used, *causes})
    ]
    html = table(
        ["participant", "rounds it is in", "absent, by cause (the coordinator's word)"], rows
    )
    return f"<details><summary>the participants</summary>{html}</details>"


def _lineage(report: Json, plan: Json, rounds: dict[int, Json], note: Json | None) -> str:
    """Base, plan, rounds, release: one below the other, rounds as squares."""
    parts, y = [], 4
    for label, value in (("base", report["base"]), ("plan", f"{plan['name']}, {report['plan']}")):
        parts.append(_box(y, label, value))
        y += SIDE + 18
    numbers = sorted(rounds)
    for at, number in enumerate(numbers):
        x, top = 4 + at % PER_ROW * (SIDE + GAP), y + at // PER_ROW * (SIDE + GAP)
        colour = COLOURS.get(rounds[number]["verdict"], "r0")
        title = escape(f"round {number}: {rounds[number]['verdict']}")
        parts.append(
            f'<g><title>{title}</title><rect class="bar {colour}" x="{x}" y="{top}" width="{SIDE}" '
            f'height="{SIDE}" rx="5"/><text x="{x + SIDE / 2}" y="{top + 22}" text-anchor="middle" '
            f'style="fill:#fff">{number}</text></g>'
        )
    y += -(-len(numbers) // PER_ROW) * (SIDE + GAP) + 10
    released = (
        "not released" if note is None else f"round {note['round']}, {note['adapter_digest']}"
    )
    parts.append(_box(y, "release", released))
    height = y + SIDE + 4
    return (
        f'<div class="wide"><svg class="hashes" viewBox="0 0 {WIDTH} {height}" role="img">'
        "<title>From the base to the release, with the verdict of every round</title>"
        f"{''.join(parts)}</svg></div>"
    )


def _box(y: int, label: str, value: str) -> str:
    shown = value if len(value) <= 84 else f"{value[:83]}…"
    return (
        f'<rect class="frame" x="4" y="{y}" width="{WIDTH - 8}" height="{SIDE}" rx="5"/>'
        f'<text class="c1" x="14" y="{y + 22}">{escape(label)}</text>'
        f'<text x="84" y="{y + 22}">{escape(shown)}</text>'
    )
