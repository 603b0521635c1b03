"""A run as one self-contained page: what is insecure, quality, participation, bytes, time; hashes last.

Everything comes from the run folder; what is missing there is said to be missing. Who took part and what
privacy was spent is drawn from the log (:mod:`simulations.report_log`); every other section says that it is
the coordinator's word. The page loads nothing and runs no script.
"""

from __future__ import annotations

import json
from itertools import accumulate
from operator import add
from pathlib import Path
from typing import Any

from markupsafe import Markup

from protocol.errors import ArtefactError
from protocol.peft_format import RELEASE_FILE
from protocol.tasks import TASKS
from protocol.tasks.base import Quality
from simulations.clients import named
from simulations.files import SUMMARY, read_json, write_text
from simulations.page import render
from simulations.plots import Line, bar_chart, line_chart, number
from simulations.records import round_records
from simulations.report_about import about, known, time_spent
from simulations.report_audit import audit
from simulations.report_log import by_the_log, read_log
from simulations.report_personal import forgetting, personal
from simulations.report_quality import by_client, by_label, quality
from simulations.report_secrecy import privacy, visible

REPORT, AUDIT = "report.html", "audit.json"
LONGEST_SAMPLE, MOST_SAMPLES = 600, 8  # characters of one; of them
REASONS = ("error", "invalid", "no-reply", "late", "unawaited")
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
    records = round_records(run)
    log = read_log(run)
    records = by_the_log(log, records)
    clients = read_json(run / "clients.json")
    failed = [read_json(path) for path in sorted(run.glob("rounds/*.attempt*.json"))]
    summary = read_json(run / SUMMARY) or {}
    timings, yardsticks = read_json(run / "timings.json") or {}, read_json(run / "yardsticks.json")
    evaluations = (read_json(run / "evaluations.json") or {}).get("test", [])
    note = _last_release(run, records)
    refused, outcome = read_json(run / "refused.json"), read_json(run / "outcome.json")
    return render(
        "report.html",
        title=str(plan.get("name", run.name)),
        about=about(plan, summary, timings),
        planned=plan.get("rounds"),
        rounds=records,
        exchange=log and log.plan.secrecy.exchange,
        figures=_figures(plan, summary),
        outcome=outcome,
        refused=refused,
        known=known(plan, summary, records, log),
        quality=quality(evaluations, yardsticks or {}, _measure(plan), summary.get("rows_test")),
        has_labels="labels" in plan.get("task", {}),
        labels=by_label(summary.get("per_label")),
        samples=_samples(read_json(run / "samples.json")),
        prompt=_prompt(summary.get("prompt_words")),
        memorised=_memorised(read_json(run / "memorisation.json")),
        clients=_clients(summary, clients, _measure(plan)),
        personal=personal(yardsticks or {}, clients, _measure(plan)),
        forgetting=forgetting(read_json(run / "forgetting.json"), _measure(plan)),
        taken=_participation(records, failed, clients),
        sent=_bytes(records),
        time=time_spent(records, summary, timings),
        norms=_norms(records),
        visible=visible(plan, records) if records else None,
        privacy=privacy(records, failed if log is None else []),
        parity=_parity(note, refused),
        audit=audit(read_json(run / AUDIT), plan, records, note, clients),
        identities=_identities(plan, records),
    )


def _measure(plan: Json) -> Quality:
    """What the plan's task is judged by."""
    kind = plan.get("task", {}).get("kind", "")
    return TASKS[kind if kind in TASKS else "classification"].QUALITY


def _samples(written: Json | None) -> list[list[object]]:
    names = ("prompt", "before", "federated", "reference")
    rows: list[list[object]] = [
        [_cut(str(each.get(name, ""))) for name in names]
        for each in (written or {}).get("rows", [])[:MOST_SAMPLES]
    ]
    scores: Json = (written or {}).get("scores", {})
    for figure, title in (("exact_match", "the same"), ("chrf", "chrF"), ("bleu", "BLEU")):
        cells = [scores.get(name, {}).get(figure) for name in ("before", "federated")]
        if any(cell is not None for cell in cells):
            rows.append([title, *("" if c is None else f"{c:.1f} %" for c in cells), ""])
    return rows


def _prompt(words: list[Json] | None) -> list[list[object]]:
    """Rows of a soft prompt: the number, the nearest token and how near it is, the others."""
    rows: list[list[object]] = []
    for each in words or []:
        near = [f"{n['token']} ({n['similarity']:.2f})" for n in each["nearest"]]
        rows.append([each["row"], *(near[:1] or ["none: a row of zeros"]), ", ".join(near[1:])])
    return rows


def _memorised(measured: Json | None) -> list[str]:
    """What of the rows the adapter has learnt by heart, in sentences."""
    lines = []
    if measured and "exposure" in measured:
        each = ", ".join(f"{bits:.1f}" for bits in measured["exposures"])
        lines.append(
            f"Secrets planted with one device have an exposure of {measured['exposure']:.1f} bits in the "
            f"mean ({each}); 1.4 would be nothing, {measured['exposure_most']:.1f} is the likeliest of all."
        )
    if measured and "membership_auc" in measured:
        lines.append(
            f"Rows that were trained on are told from test rows with an AUC of "
            f"{measured['membership_auc']:.3f}, on {measured['members']} of each; 0.5 would be nothing."
        )
    return lines


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SAMPLE else f"{text[:LONGEST_SAMPLE]}…"


def _clients(summary: Json, clients: Json | None, measure: Quality) -> Markup:
    listed = clients or {"column": None, "clients": {}}
    return by_client(summary.get("per_client") or listed["clients"], listed["column"], measure)


def _last_release(run: Path, records: list[Json]) -> Json | None:
    for record in reversed(records):
        note = read_json(run / "rounds" / f"{record['round']:04d}" / "adapter" / RELEASE_FILE)
        if note and note.get("parity"):
            found: Json = note
            return found
    return None


def _figures(plan: Json, summary: Json) -> list[tuple[str, str]]:
    """Value and words of each; none before the run is finished."""
    name, title = _measure(plan).name, _measure(plan).title
    wanted = (
        *([(f"{name}_before", f"{title} before")] if f"{name}_before" in summary else []),
        (f"{name}_alone_mean", f"devices alone, mean {title}"),
        (f"{name}_federated", f"federated {title}"),
        (f"{name}_pooled", f"all data in one place, {title}"),
        ("loss_federated", "federated loss"),
        ("loss_pooled", "all data in one place, loss"),
        *([("macro_f1_federated", "federated macro-F1")] if name == "accuracy" else []),
        ("upload_bytes_per_client_round", "bytes up per client and round"),
        ("adapter_bytes", "bytes of the adapter on a device"),
        ("seconds", "seconds in all"),
    )
    return [(_figure(key, summary.get(key)), text) for key, text in wanted] if summary else []


def _figure(key: str, value: Any) -> str:
    if value is None:
        return "not measured"
    if key.startswith("loss"):
        return f"{value:.3f}"
    if key.startswith("perplexity"):
        return f"{value:.2f}"
    if key.startswith("noise_error"):
        return f"{value:.4f}"
    return (
        f"{value:.1%}" if key.startswith(("accuracy", "macro", "nrmse")) else number(float(value))
    )


def _participation(records: list[Json], failed: list[Json], clients: Json | None) -> Json:
    rounds = [float(record["round"]) for record in records]
    counts = {
        reason: [float(sum(d["reason"] == reason for d in record["dropped"])) for record in records]
        for reason in REASONS
    }
    series = [("used", "c2", [float(len(record["used"])) for record in records])]
    series += [(r, f"r{i}", counts[r]) for i, r in enumerate(REASONS) if any(counts[r])]
    return {
        "chart": bar_chart("Clients per round: used, and dropped by cause", rounds, series),
        "reasons": list(REASONS),
        "rows": [
            [r["round"], len(r["expected"]), len(r["used"]), r["quorum"]]
            + [int(counts[reason][i]) for reason in REASONS]
            for i, r in enumerate(records)
        ],
        "failed": len(failed),
        "dropped": [
            [each["round"], each["attempt"], named(d["client"], clients), d["reason"], d["detail"]]
            for each in [*records, *failed]
            for d in each["dropped"]
        ],
    }


def _bytes(records: list[Json]) -> Json:
    up = [float(r["bytes_up_per_client"] * len(r["used"])) for r in records]
    down = [float(r["bytes_down_per_client"] * len(r["expected"])) for r in records]
    rounds = [float(r["round"]) for r in records]
    kilo = [("up", "c1", [v / 1000 for v in up]), ("down", "c3", [v / 1000 for v in down])]
    whole = accumulate(map(add, up, down))
    return {
        "chart": bar_chart("Kilobytes per round, all clients", rounds, kilo, unit=" kB"),
        "rows": [
            [r["round"], r["bytes_up_per_client"], r["bytes_down_per_client"], int(total)]
            for r, total in zip(records, whole, strict=True)
        ],
    }


def _norms(records: list[Json]) -> Json | None:
    points = tuple((float(r["round"]), float(r["update_norm"])) for r in records)
    if not any(y for _, y in points):
        return None
    chart = line_chart("L2 norm of the mean update", [Line(name="norm", points=points, css="c1")])
    return {"chart": chart, "rows": [[int(x), y] for x, y in points]}


def _parity(note: Json | None, refused: Json | None) -> list[list[object]]:
    return [
        [
            each["round"],
            "released" if each is note else "refused",
            each["parity"]["rows"],
            f"{each['parity']['max_relative']:.1e}",
            f"{each['parity']['bound']:.0e}",
            f"{each['parity'].get('absolute', 0):.1e}",
            f"{each['parity']['label_agreement']:.2%}",
        ]
        for each in (note, refused)
        if each and each["parity"]
    ]


def _identities(plan: Json, records: list[Json]) -> list[list[object]]:
    rows: list[list[object]] = []
    for key, value in plan.items():
        if isinstance(value, dict):
            rows += [[f"{key}.{inner}", _short(content)] for inner, content in value.items()]
        else:
            rows.append([key, _short(value)])
    last = records[-1] if records else {}
    for key in ("plan_digest", "base_fingerprint", "adapter_out", "adapter_published"):
        rows.append([key, last.get(key, "not there yet")])
    return rows


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"
