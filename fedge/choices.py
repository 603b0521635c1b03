"""``fedge methods`` and ``fedge rules``: what there is, what of it is legal under a plan, and its cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedge.plans import Base, Json, read_manifest, read_plan
from protocol.decoder_manifest import DECODER
from protocol.denoiser_manifest import DenoiserManifest
from protocol.legality import check
from protocol.manifest import DOCUMENTS, HeadManifest, Manifest
from protocol.manifests import AnyManifest
from protocol.media_manifest import MediaManifest
from protocol.methods import METHODS
from protocol.plan import Plan, plan_from
from protocol.rules import RULES
from protocol.section import MOST_LABELS

KIB = 1024
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", help="its task, cohort and secrecy are assumed; needs --base"),
]
Rows = list[dict[str, Any]]


def methods(base: Base = None, plan: PlanFile = None, as_json: Json = False) -> None:
    """What may be trained: every PEFT method; on a base also whether it is legal there, and its cost.

    Each has its defaults, and the plan's targets where it has targets; the plan's own method is as planned.
    """
    rows = [_method_row(name) for name in METHODS]
    if assumed := _assumed(base, plan):
        rows = [row | _judged(*_with_method(row["name"], *assumed)) for row in rows]
    keys = [f"{', '.join(row['keys'])}" for row in rows]
    _show(rows, as_json, ("method", "what it trains"), ("keys of [adapter]", keys))


def rules(base: Base = None, plan: PlanFile = None, as_json: Json = False) -> None:
    """How updates become the next adapter: every rule; on a base also its cost with the plan's method."""
    rows = [_rule_row(name) for name in RULES]
    if assumed := _assumed(base, plan):
        rows = [row | _judged(*_with_rule(row["name"], *assumed)) for row in rows]
    exact = [", ".join(name for name, of in row["methods"].items() if of["exact"]) for row in rows]
    _show(rows, as_json, ("rule", "what it does"), ("exact with", exact))


def _method_row(name: str) -> dict[str, Any]:
    method = METHODS[name]
    return {
        "name": name,
        "summary": method.summary,
        "source": method.source,
        "peft_type": method.peft_type,
        "turns": [sorted(turn) for turn in method.turns],
        "keys": [key for key in method.settings.model_fields if key != "method"],
    }


def _rule_row(name: str) -> dict[str, Any]:
    """With what it trains in turn of each method, and whether that is exact."""
    rule = RULES[name]
    return {
        "name": name,
        "summary": rule.summary,
        "source": rule.source,
        "schedule": rule.schedule,
        "methods": {
            name: {
                "phases": [sorted(parts) for parts in rule.phases(method)],
                "exact": rule.exact(method),
            }
            for name, method in METHODS.items()
        },
    }


def _assumed(base: Path | None, plan: Path | None) -> tuple[Plan, AnyManifest] | None:
    """The plan that rows are judged under, on the base. Raises PlanError, ArtefactError."""
    if base is None:
        if plan is not None:
            raise typer.BadParameter("--plan needs --base: on which base?")
        return None
    manifest = read_manifest(base)
    return (_plain_plan(manifest) if plan is None else read_plan(plan)), manifest


def _plain_plan(manifest: AnyManifest) -> Plan:
    """Defaults, for what the base was built for."""
    if isinstance(manifest, HeadManifest):
        count = max(2, manifest.head.labels)
        task: dict[str, Any] = {"labels": [f"label-{number}" for number in range(count)]}
        if isinstance(manifest, MediaManifest):
            task["kind"] = manifest.MEDIUM.task
        else:
            task["max_length"] = min(128, manifest.max_positions // 2)
            if isinstance(manifest, Manifest) and manifest.boxed:
                task["kind"] = DOCUMENTS
    elif isinstance(manifest, DenoiserManifest):
        count = min(max(2, manifest.classes), MOST_LABELS)
        labels = [f"label-{number}" for number in range(count)]
        task = {"kind": manifest.MEDIUM.task, "labels": labels}
    else:
        task = {"kind": "causal-lm" if manifest.task == DECODER else "seq2seq-lm"}
        task["max_length"] = min(128, manifest.max_positions // 2)
    document = {"name": "assumed", "base": {"fingerprint": manifest.fingerprint}, "task": task}
    return plan_from(document, source="a plan of defaults")


def _with_method(name: str, plan: Plan, manifest: AnyManifest) -> tuple[Plan, AnyManifest]:
    if plan.adapter.method == name:
        return plan, manifest
    known = METHODS[name].settings.model_fields
    shared = {"targets"} & known.keys() & plan.adapter.model_fields_set
    settings = {"method": name} | plan.adapter.model_dump(include=shared)
    return _changed(plan, {"adapter": settings}), manifest


def _with_rule(name: str, plan: Plan, manifest: AnyManifest) -> tuple[Plan, AnyManifest]:
    return _changed(plan, {"rule": {"name": name}}), manifest


def _changed(plan: Plan, tables: dict[str, Any]) -> Plan:
    return plan_from(plan.model_dump(mode="json") | tables, source="the plan")


def _judged(plan: Plan, manifest: AnyManifest) -> dict[str, Any]:
    """``legal``, ``reason`` and ``remedy``; of what is legal the numbers a round trains, and their cost."""
    from fedge.forecast import forecast

    errors = [finding for finding in check(plan, manifest) if finding.severity == "error"]
    if errors:
        return {"legal": False, "reason": errors[0].cause, "remedy": errors[0].remedy}
    cost = forecast(plan, manifest)
    phases, uploads = cost.trained_parameters_by_phase, cost.upload_bytes_per_client_round
    return {
        "legal": True,
        "trainable": round(sum(phases.values()) / len(phases)),
        "upload_bytes_per_round": round(sum(uploads.values()) / len(uploads)),
        "download_bytes_per_round": cost.download_bytes_per_client_round,
        "client_memory_bytes_estimate": cost.client_memory_bytes_estimate,
    }


def _show(rows: Rows, as_json: bool, titles: tuple[str, str], more: tuple[str, list[str]]) -> None:
    """``more``: the title and the cells of the last column, where nothing is judged."""
    if as_json:
        typer.echo(json.dumps(rows))
        return
    console = Console(markup=False, emoji=False)
    if "legal" in rows[0]:
        _show_costs(rows, titles[0], console)
        return
    table = Table(*titles, more[0])
    for row, last in zip(rows, more[1], strict=True):
        table.add_row(row["name"], f"{row['summary']} ({row['source']})", last)
    console.print(table)


def _show_costs(rows: Rows, title: str, console: Console) -> None:
    """A row for what is legal, a line with the reason for what is not."""
    table = Table(title, *("numbers a round", "KiB up", "KiB down", "client MiB"))
    for row in rows:
        if row["legal"]:
            table.add_row(row["name"], *_costs(row))
    console.print(table)
    for row in rows:
        if not row["legal"]:
            line = f"{row['name']}: {row['reason']} ({row['remedy']})"
            console.print(line, soft_wrap=True)


def _costs(row: dict[str, Any]) -> Iterator[str]:
    yield f"{row['trainable']:,}"
    for key in ("upload_bytes_per_round", "download_bytes_per_round"):
        yield f"{row[key] / KIB:,.1f}"
    yield f"{row['client_memory_bytes_estimate'] / KIB**2:,.0f}"
