"""A run as one self-contained page: what is insecure, quality, participation, bytes, time; hashes last.

Everything comes from the run folder; what is missing there is said to be missing. Who took part and what
privacy was spent is drawn from the log (:mod:`simulations.report_log`); every other section says that it is
the coordinator's word. The page loads nothing and runs no script.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from protocol.errors import ArtefactError
from protocol.peft_format import RELEASE_FILE
from protocol.tasks import TASKS
from protocol.tasks.base import Quality
from simulations.clients import named
from simulations.files import read_json, write_text
from simulations.page import details, page
from simulations.plots import Line, bar_chart, line_chart, number, table
from simulations.report_about import about, known, time_spent
from simulations.report_audit import audit
from simulations.report_log import WORD, by_the_log, read_log, whose
from simulations.report_quality import by_client, by_label, quality
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
    summary = read_json(run / "summary.json") or {}
    timings, yardsticks = read_json(run / "timings.json") or {}, read_json(run / "yardsticks.json")
    evaluations = (read_json(run / "evaluations.json") or {}).get("test", [])
    note = _last_release(run, records)
    refused, outcome = read_json(run / "refused.json"), read_json(run / "outcome.json")
    sections = [
        ("Figures", _figures(plan, summary, records) + _why(outcome, refused) + WORD),
        ("What to know about this run", known(plan, summary, records, log)),
        (
            "Quality per round",
            quality(evaluations, yardsticks or {}, _measure(plan), summary.get("rows_test")) + WORD,
        ),
        *_labels(plan, summary),
        ("Clients", _clients(summary, clients) + WORD),
        ("Participation", _participation(records, failed, clients) + own + REASONED),
        ("Bytes", _bytes(records) + WORD),
        ("Time", time_spent(records, summary, timings) + WORD),
        ("Size of the update", _norms(records)),
        ("What the coordinator could see", visible(plan, records)),
        ("Privacy spent", privacy(records, failed if log is None else []) + own),
        ("Parity: torch against ONNX Runtime", _parity(note, refused) + WORD),
        ("Audit", audit(read_json(run / AUDIT), plan, records, note, clients)),
        ("Plan and identities", _identities(plan, records)),
    ]
    return page(str(plan.get("name", run.name)), about(plan, summary, timings), sections)


def _measure(plan: Json) -> Quality:
    """What the plan's task is judged by."""
    kind = plan.get("task", {}).get("kind", "")
    return TASKS[kind if kind in TASKS else "classification"].QUALITY


def _labels(plan: Json, summary: Json) -> list[tuple[str, str]]:
    """The section, where the task has labels."""
    if "labels" not in plan.get("task", {}):
        return []
    return [("Labels", by_label(summary.get("per_label")) + WORD)]


def _clients(summary: Json, clients: Json | None) -> str:
    listed = clients or {"column": None, "clients": {}}
    return by_client(summary.get("per_client") or listed["clients"], listed["column"])


def _last_release(run: Path, records: list[Json]) -> Json | None:
    for record in reversed(records):
        note = read_json(run / "rounds" / f"{record['round']:04d}" / "adapter" / RELEASE_FILE)
        if note and note.get("parity"):
            found: Json = note
            return found
    return None


def _figures(plan: Json, summary: Json, records: list[Json]) -> str:
    if not summary:
        return f"<p>Not finished: {len(records)} of {plan.get('rounds')} rounds are there.</p>"
    name, title = _measure(plan).name, _measure(plan).title
    wanted = (
        (f"{name}_alone_mean", f"devices alone, mean {title}"),
        (f"{name}_federated", f"federated {title}"),
        (f"{name}_pooled", f"all data in one place, {title}"),
        ("loss_federated", "federated loss a row"),
        ("loss_pooled", "all data in one place, loss"),
        *([("macro_f1_federated", "federated macro-F1")] if name == "accuracy" else []),
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
    if key.startswith("loss"):
        return f"{value:.3f}"
    return (
        f"{value:.1%}" if key.startswith(("accuracy", "macro", "nrmse")) else number(float(value))
    )


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
    html = chart + details(
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
    return bar_chart("Kilobytes per round, all clients", rounds, kilo, unit=" kB") + details(
        table(head, rows)
    )


def _norms(records: list[Json]) -> str:
    points = tuple((float(r["round"]), float(r["update_norm"])) for r in records)
    if not any(y for _, y in points):
        return "<p>Not recorded under this rule.</p>"
    chart = line_chart("L2 norm of the mean update", [Line(name="norm", points=points, css="c1")])
    return chart + details(table(["round", "norm"], [[int(x), y] for x, y in points]))


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
