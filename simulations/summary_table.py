"""Runs in figures on a terminal: one, or groups of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from protocol.errors import printable
from protocol.tasks import TASKS
from simulations.compare import FIGURES, Group, comparison, shown_figure, shown_value
from simulations.progress import duration
from simulations.summary import Summary

T = TypeVar("T")
QUALITIES = {task.QUALITY.name: task.QUALITY for task in TASKS.values()}.values()


def print_summary(console: Console, summary: Summary, folder: Path) -> None:
    """A run's table, what to know about it, and where its things are."""
    console.print(summary_table(summary))
    facts = Table(show_header=False)
    facts.add_column()
    facts.add_column(justify="right")
    for label, value in _facts(summary):
        facts.add_row(label, value)
    console.print(facts)
    for line in [*summary.insecure, *summary.warnings, *_counted(summary)]:
        console.print(f"! {line}", style="yellow", soft_wrap=True)
    console.print(f"run: {folder}", soft_wrap=True)
    console.print(f"adapter: {summary.adapter}", soft_wrap=True)
    if summary.report:
        console.print(f"report: {summary.report}", soft_wrap=True)


def summary_table(summary: Summary) -> Table:
    """How well it went: federated beside both yardsticks."""
    title = f"{summary.name}: {summary.clients} devices, {summary.rounds} rounds"
    table = Table(title=title)
    table.add_column("")
    for head in ("devices alone", "federated", "all in one place"):
        table.add_column(head, justify="right")
    whose = ("alone_mean", "federated", "pooled")
    for label, key, digits in (
        ("accuracy", "accuracy", "{:.1%}"),
        ("macro-F1", "macro_f1", "{:.1%}"),
        ("NRMSE", "nrmse", "{:.1%}"),
        ("perplexity", "perplexity", "{:.2f}"),
        ("noise error", "noise_error", "{:.4f}"),
        ("token accuracy", "token_accuracy", "{:.1%}"),
        ("loss", "loss", "{:.3f}"),
    ):
        values = [getattr(summary, f"{key}_{each}") for each in whose]
        if not any(value is not None for value in values):
            continue
        table.add_row(label, *("-" if v is None else digits.format(v) for v in values))
    return table


def _facts(summary: Summary) -> list[tuple[str, str]]:
    expected = sum(summary.seconds_forecast.values())
    choices = summary.nrmse_federated is None and summary.noise_error_federated is None
    same = summary.parity_label_agreement if choices else None  # a number is no answer of several
    facts = [
        ("up per client and round", _size(summary.upload_bytes_per_client_round)),
        ("down per client and round", _size(summary.download_bytes_per_client_round)),
        ("adapter on the device", _known(summary.adapter_bytes, _size)),
        ("parity, largest relative", _known(summary.parity_max_relative, "{:.1e}".format)),
        ("parity, same answers", _known(same, "{:.1%}".format)),
        ("updates are summed", "in secret" if summary.exchange == "secagg" else "in clear"),
        ("epsilon spent by a device", _epsilon(summary)),
        ("rounds an auditor verifies", f"{summary.rounds_verified} of {summary.rounds}"),
        ("replies missing or refused", str(summary.dropped - summary.unawaited)),
        ("tokens per second", f"{summary.tokens_per_second:,.0f}"),
        ("time", duration(summary.seconds)),
        ("time, as forecast", duration(expected) if expected else "-"),
    ]
    for name, before, after in (
        ("answers that are the same", summary.exact_match_before, summary.exact_match_federated),
        ("chrF of answers", summary.chrf_before, summary.chrf_federated),
        ("BLEU of answers", summary.bleu_before, summary.bleu_federated),
    ):
        if before is not None and after is not None:
            facts.append((f"{name}, before and after", f"{before:.1f} % and {after:.1f} %"))
    if summary.unawaited:
        facts.append(("replies not waited for", str(summary.unawaited)))
    if summary.exposure is not None:
        facts.append(("exposure of planted secrets", f"{summary.exposure:.1f} bits"))
    if summary.membership_auc is not None:
        facts.append(("membership inference, AUC", f"{summary.membership_auc:.3f}"))
    if summary.parity_tokens is not None:
        alike, written = summary.parity_tokens
        facts.insert(5, ("parity, tokens written alike", f"{alike} of {written}"))
    sent = summary.adapter_sent_bytes
    if sent is not None and sent != summary.adapter_bytes:
        facts.insert(3, ("of it sent to a device", _size(sent)))
    for quality in QUALITIES:
        before = getattr(summary, f"{quality.name}_before", None)
        if before is not None:
            facts.insert(0, (f"{quality.title} before", quality.figure(before)))
    facts += _personal(summary)
    if worst := _served_worst(summary):
        facts.insert(0, worst)
    return facts


def _served_worst(summary: Summary) -> tuple[str, str] | None:
    """The client that the adapter does worst for, where clients were measured."""
    served = [
        (entry["federated"], name, entry["value"])
        for name, entry in summary.per_client.items()
        if "federated" in entry
    ]
    if not served:
        return None
    measured = (q for q in QUALITIES if getattr(summary, f"{q.name}_federated") is not None)
    measure = next(measured, None)
    lower = measure is not None and not measure.higher_is_better  # the largest is the worst
    ordered = sorted(served, key=lambda each: (-each[0] if lower else each[0], each[1]))
    worst, name, value = ordered[0]
    who = name if value is None else f"{name} ({value})"
    figure = measure.said(worst) if measure is not None and lower else f"{worst:.1%}"
    return "client served worst", printable(f"{who}: {figure}")


def _personal(summary: Summary) -> list[tuple[str, str]]:
    """Devices on their own test rows, and what is left of runs before."""
    facts = []
    for quality in QUALITIES:
        before = getattr(summary, f"{quality.name}_global_on_own_mean")
        after = getattr(summary, f"{quality.name}_personal_mean")
        if before is not None and after is not None:
            both = f"{quality.figure(before)} and {quality.figure(after)}"
            facts.append((f"{quality.title} on own test rows, federated and personal", both))
        for entry in summary.forgetting:
            if getattr(summary, f"{quality.name}_forgotten_mean") is not None and "now" in entry:
                both = f"{quality.figure(entry['then'])} and {quality.figure(entry['now'])}"
                facts.append((printable(f"test rows of {entry['run']}, then and now"), both))
    return facts


def group_tables(groups: Sequence[Group]) -> list[Table]:
    """Figures of every group, and the settings that differ."""
    body = comparison(groups)
    names = [
        printable(f"{group.name}, {len(group.runs)} runs" if len(group.runs) > 1 else group.name)
        for group in groups
    ]
    figures = Table("", *names)
    for key, label in FIGURES.items():
        cells = [group["figures"].get(key) for group in body["groups"]]
        if any(cells):
            figures.add_row(label, *(shown_figure(key, cell) for cell in cells))
    if not body["differences"]:
        return [figures]
    settings = Table("setting", *names)
    for key, values in body["differences"].items():
        settings.add_row(key, *(printable(shown_value(value)) for value in values))
    return [figures, settings]


def _counted(summary: Summary) -> list[str]:
    said = []
    if summary.failures:
        said.append(f"{summary.failures} time(s) a device failed and contributed zeros")
    if (summary.clipped_share or 0) > 0.5:
        said.append(f"{summary.clipped_share:.0%} of the updates were cut at secrecy.clip")
    return said


def _epsilon(summary: Summary) -> str:
    if summary.epsilon is None:
        return "no privacy noise"
    return f"{summary.epsilon:.2f} at delta {summary.delta:g}"


def _known(value: T | None, shown: Callable[[T], str]) -> str:
    return "-" if value is None else shown(value)


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} KB"
