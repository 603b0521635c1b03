"""A run as one self-contained page: quality, participation, bytes, time, parity, what is insecure.

Everything comes from the run folder; what is missing there is said to be missing. Who took part and what
privacy was spent is drawn from the log (:mod:`simulations.report_log`); every other section says that it is
the coordinator's word. The page loads nothing and runs no script.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from protocol.errors import ArtefactError, FedgeError
from protocol.peft_format import RELEASE_FILE
from protocol.rules import rule_named
from simulations.clients import named, who_is_who
from simulations.files import read_json, write_text
from simulations.plots import Band, Line, bar_chart, line_chart, number, table
from simulations.report_audit import audit
from simulations.report_log import WORD, by_the_log, read_log, whose
from simulations.report_secrecy import privacy, visible

REPORT, AUDIT = "report.html", "audit.json"
REASONS = ("error", "invalid", "no-reply", "late")
REASONED = "<p>Who was asked and why somebody is missing is the coordinator's word in any case.</p>"
Json = dict[str, Any]


def write_report(run: Path) -> Path:
    """Write ``report.html`` into the run folder. Raises ArtefactError for what is not a run."""
    plan = read_json(run / "plan.json")
    if plan is None:
        raise ArtefactError(f"{run} is not a run: there is no plan.json", "name a run folder")
    if not isinstance(plan, dict):
        raise ArtefactError(f"{run / 'plan.json'} is damaged", "restore it from the plan's author")
    path = run / REPORT
    write_text(path, _page(run, plan))
    return path


def _page(run: Path, plan: Json) -> str:
    records = [
        r
        for r in (read_json(p) for p in sorted(run.glob("rounds/[0-9]*/record.json")))
        if r["round"]
    ]
    log = read_log(run)
    records, own = by_the_log(log, records), whose(log)
    clients = read_json(run / "clients.json")
    failed = [read_json(path) for path in sorted(run.glob("rounds/*.attempt*.json"))]
    summary, yardsticks = read_json(run / "summary.json"), read_json(run / "yardsticks.json") or {}
    evaluations = (read_json(run / "evaluations.json") or {}).get("test", [])
    note = _last_release(run, records)
    refused, outcome = read_json(run / "refused.json"), read_json(run / "outcome.json")
    sections = [
        ("Figures", _figures(plan, summary, records) + _why(outcome, refused) + WORD),
        ("What is insecure about this run", _insecure(plan, summary, records)),
        ("What the coordinator could see", visible(plan, records)),
        ("Privacy spent", privacy(records, failed if log is None else []) + own),
        ("Audit", audit(read_json(run / AUDIT), plan, records, note)),
        ("Quality per round", _quality(evaluations, yardsticks) + WORD),
        ("Participation", _participation(records, failed, clients) + own + REASONED),
        ("Clients", who_is_who(clients)),
        ("Bytes", _bytes(records) + WORD),
        ("Time", _time(records, summary, _wall(run)) + WORD),
        ("Size of the update", _norms(records)),
        ("Parity: torch against ONNX Runtime", _parity(note, refused) + WORD),
        ("Plan and identities", _identities(plan, records)),
    ]
    body = "".join(f"<section><h2>{escape(title)}</h2>{html}</section>" for title, html in sections)
    name = escape(str(plan.get("name", run.name)))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: a federated run</title><style>{CSS}</style></head>"
        f"<body><header><h1>{name}</h1><p>A federated run, reported by fedge.</p></header>{body}"
        "</body></html>\n"
    )


def _wall(run: Path) -> Json:
    """Seconds of each round by the clock on the wall."""
    found: Json = read_json(run / "timings.json", {}).get("rounds", {})
    return found


def _last_release(run: Path, records: list[Json]) -> Json | None:
    for record in reversed(records):
        note = read_json(run / "rounds" / f"{record['round']:04d}" / "adapter" / RELEASE_FILE)
        if note and note.get("parity"):
            found: Json = note
            return found
    return None


def _figures(plan: Json, summary: Json | None, records: list[Json]) -> str:
    if summary is None:
        return f"<p>Not finished: {len(records)} of {plan.get('rounds')} rounds are there.</p>"
    wanted = (
        ("accuracy_alone_mean", "devices alone, mean accuracy"),
        ("accuracy_federated", "federated accuracy"),
        ("accuracy_pooled", "all data in one place, accuracy"),
        ("upload_bytes_per_client_round", "bytes up per client and round"),
        ("adapter_bytes", "bytes of the adapter on a device"),
        ("seconds", "seconds in all"),
    )
    cards = "".join(
        f'<div class="card"><b>{escape(_figure(key, summary.get(key)))}</b><span>{escape(text)}</span></div>'
        for key, text in wanted
    )
    return f'<div class="cards">{cards}</div>'


def _why(outcome: Json | None, refused: Json | None) -> str:
    """What ended the run, or kept its adapter from devices."""
    said = []
    if outcome and not outcome.get("finished"):
        said.append(f"The run ended before its plan: {outcome['cause']} ({outcome['remedy']}).")
    if refused:
        said.append(
            f"Round {refused['round']} is not released: {refused['cause']} ({refused['remedy']})."
        )
    return "".join(f'<p class="warn">{escape(text)}</p>' for text in said)


def _figure(key: str, value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.1%}" if key.startswith("accuracy") else number(float(value))


def _insecure(plan: Json, summary: Json | None, records: list[Json]) -> str:
    said = list((summary or {}).get("insecure", []))
    if not said:
        if any(not record.get("secure") for record in records):
            said.append("the exchange is not secure: the coordinator saw every client's update")
        if plan.get("privacy", {}).get("mechanism") == "none":
            said.append("no differential privacy: the adapter may reveal single rows of a device")
    try:
        if rule_named(plan["rule"]["name"]).needs == "individual":
            said.append(
                "the rule itself reads single updates; it cannot be run under secure aggregation"
            )
    except (FedgeError, KeyError):
        said.append("the plan's rule is not known to this version")
    if not said:
        return "<p>Nothing that the records show.</p>"
    return '<ul class="warn">' + "".join(f"<li>{escape(str(line))}</li>" for line in said) + "</ul>"


def _quality(evaluations: list[Json], yardsticks: Json) -> str:
    if not evaluations:
        return "<p>No evaluation was recorded.</p>"
    points = tuple((float(e["round"]), float(e["accuracy"])) for e in evaluations)
    chart_points = tuple((x, 100 * y) for x, y in points)
    ends = (points[0][0], points[-1][0])
    lines = [Line(name="federated", points=chart_points, css="c1")]
    band, rows = None, [[int(x), f"{y:.2%}"] for x, y in points]
    if pooled := yardsticks.get("pooled"):
        height = float(pooled["accuracy"])
        lines.append(
            Line(
                name="all in one place",
                points=tuple((x, 100 * height) for x in ends),
                css="c2",
                dashed=True,
            )
        )
        rows.append(["all data in one place", f"{height:.2%}"])
    if alone := yardsticks.get("alone"):
        height, each = float(alone["mean"]), [float(v) for v in alone["per_client"].values()]
        lines.append(
            Line(
                name="alone, mean",
                points=tuple((x, 100 * height) for x in ends),
                css="c3",
                dashed=True,
            )
        )
        band = Band(name="alone, range", low=100 * min(each), high=100 * max(each))
        rows.append([f"alone: mean of {len(each)} devices", f"{height:.2%}"])
        rows.append(["alone: worst and best device", f"{min(each):.2%} to {max(each):.2%}"])
    chart = line_chart(
        "Test accuracy per round against both yardsticks", lines, band=band, unit=" %"
    )
    note = "<p>The shaded band is the range of devices on their own.</p>" if band else ""
    return chart + note + _details(table(["round", "accuracy"], rows))


def _participation(records: list[Json], failed: list[Json], clients: Json | None) -> str:
    if not records:
        return "<p>No round is finished.</p>"
    rounds = [float(record["round"]) for record in records]
    counts = {
        reason: [float(sum(d["reason"] == reason for d in record["dropped"])) for record in records]
        for reason in REASONS
    }
    series = [("used", "c2", [float(len(record["used"])) for record in records])]
    series += [(r, f"r{i}", counts[r]) for i, r in enumerate(REASONS) if any(counts[r])]
    chart = bar_chart("Clients per round: used, and dropped by cause", rounds, series)
    dropped = [
        [
            record["round"],
            record["attempt"],
            named(d["client"], clients),
            d["reason"],
            d["detail"],
        ]
        for record in [*records, *failed]
        for d in record["dropped"]
    ]
    html = chart + _details(
        table(
            ["round", "expected", "used", "quorum", *REASONS],
            [
                [r["round"], len(r["expected"]), len(r["used"]), r["quorum"]]
                + [int(counts[reason][i]) for reason in REASONS]
                for i, r in enumerate(records)
            ],
        )
    )
    html += f"<p>{len(failed)} attempt(s) failed their quorum.</p>" if failed else ""
    for record in (r for r in records if r.get("void")):
        text = f"Round {record['round']} left the model as it was: {record['void']}."
        html += f'<p class="warn">{escape(text)}</p>'
    if not dropped:
        return html + "<p>Every client that was expected was used.</p>"
    return html + table(["round", "attempt", "client", "cause", "detail"], dropped)


def _bytes(records: list[Json]) -> str:
    if not records:
        return "<p>No round is finished.</p>"
    up = [float(r["bytes_up_per_client"] * len(r["used"])) for r in records]
    down = [float(r["bytes_down_per_client"] * len(r["expected"])) for r in records]
    rounds = [float(r["round"]) for r in records]
    kilo = [("up", "c1", [v / 1000 for v in up]), ("down", "c3", [v / 1000 for v in down])]
    rows = [
        [
            int(n),
            r["bytes_up_per_client"],
            r["bytes_down_per_client"],
            int(sum(up[: i + 1]) + sum(down[: i + 1])),
        ]
        for i, (n, r) in enumerate(zip(rounds, records, strict=True))
    ]
    head = ["round", "up per client", "down per client", "all clients, cumulated"]
    return bar_chart("Kilobytes per round, all clients", rounds, kilo, unit=" kB") + _details(
        table(head, rows)
    )


def _time(records: list[Json], summary: Json | None, wall: Json) -> str:
    rows = [
        (
            float(r["round"]),
            float(wall.get(str(r["round"]), r["metrics"].get("train_seconds", 0.0))),
        )
        for r in records
    ]
    if not rows:
        return "<p>No round is finished.</p>"
    chart = bar_chart(
        "Seconds per round",
        [x for x, _ in rows],
        [("seconds", "c1", [y for _, y in rows])],
        unit=" s",
    )
    parts = [
        [key.removeprefix("seconds_"), f"{value:.1f} s"]
        for key, value in (summary or {}).items()
        if key.startswith("seconds_") and isinstance(value, float)
    ]
    kind = "" if wall else "<p>Sum of the clients' training time.</p>"
    return (
        chart
        + kind
        + (table(["part of the run", "time"], parts) if parts else "")
        + _details(table(["round", "seconds"], [[int(x), y] for x, y in rows]))
    )


def _norms(records: list[Json]) -> str:
    points = tuple((float(r["round"]), float(r["update_norm"])) for r in records)
    if not any(y for _, y in points):
        return "<p>Not recorded under this rule.</p>"
    chart = line_chart("L2 norm of the mean update", [Line(name="norm", points=points, css="c1")])
    return chart + _details(table(["round", "norm"], [[int(x), y] for x, y in points]))


def _parity(note: Json | None, refused: Json | None) -> str:
    measured = [each for each in (note, refused) if each and each["parity"]]
    if not measured:
        return "<p>No round was released, so parity was not measured.</p>"
    rows = [
        [
            each["round"],
            "released" if each is note else "refused",
            each["parity"]["rows"],
            f"{each['parity']['max_relative']:.1e}",
            f"{each['parity']['bound']:.0e}",
            f"{each['parity'].get('absolute', 0):.1e}",
            f"{each['parity']['label_agreement']:.2%}",
        ]
        for each in measured
    ]
    head = ["round", "", "rows", "largest relative difference of logits", "bound"]
    return table([*head, "passes in any row", "same labels"], rows)


def _identities(plan: Json, records: list[Json]) -> str:
    rows: list[list[object]] = []
    for key, value in plan.items():
        if isinstance(value, dict):
            rows += [[f"{key}.{inner}", _short(content)] for inner, content in value.items()]
        else:
            rows.append([key, _short(value)])
    last = records[-1] if records else {}
    for key in ("plan_digest", "base_fingerprint", "adapter_out", "adapter_published"):
        rows.append([key, last.get(key, "not there yet")])
    return table(["key", "value"], rows)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _details(html: str) -> str:
    return f"<details><summary>the figures</summary>{html}</details>"


CSS = """
:root{--bg:#fff;--ink:#1c2430;--soft:#5b6675;--grid:#e3e7ec;--c1:#1f6feb;--c2:#1a7f5a;--c3:#b4690e;
--r0:#c0392b;--r1:#8e44ad;--r2:#95a5a6;--r3:#d4a017;--card:#f4f6f9;--warn:#fdf0e3}
@media (prefers-color-scheme:dark){:root{--bg:#12161c;--ink:#e6ebf2;--soft:#9aa6b5;--grid:#2b333e;
--c1:#6ea8fe;--c2:#4cc38a;--c3:#f0a54a;--r0:#ff7b6b;--r1:#c58af9;--r2:#8b98a8;--r3:#e8c04f;
--card:#1b212a;--warn:#33261a}}
body{background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif;max-width:60rem;
margin:0 auto;padding:1rem}
h1{margin:.2em 0}h2{margin:1.6em 0 .4em;font-size:1.2rem}header p,details,summary{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.6rem}
.card{background:var(--card);border-radius:.5rem;padding:.7rem}.card b{display:block;font-size:1.4rem}
.card span{color:var(--soft);font-size:.85rem}.warn{background:var(--warn);border-radius:.5rem;
padding:.8rem .8rem .8rem 2rem}svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);
font-size:12px}.grid{stroke:var(--grid)}.frame{fill:var(--card);stroke:var(--grid)}.line{fill:none;stroke-width:2.5}.band{fill:var(--c3);opacity:.15}
.line.c1{stroke:var(--c1)}.line.c2{stroke:var(--c2)}.line.c3{stroke:var(--c3)}.dot.c1,.bar.c1{fill:var(--c1)}
.dot.c2,.bar.c2{fill:var(--c2)}.dot.c3,.bar.c3{fill:var(--c3)}.bar.r0{fill:var(--r0)}.bar.r1{fill:var(--r1)}
.bar.r2{fill:var(--r2)}.bar.r3{fill:var(--r3)}svg text.c1{fill:var(--c1)}svg text.c2{fill:var(--c2)}
svg text.c3{fill:var(--c3)}.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;width:100%}
td,th{border-bottom:1px solid var(--grid);padding:.3rem .5rem;text-align:left;overflow-wrap:anywhere}
@media print{details{display:none}section{break-inside:avoid}}
"""
