"""Reports, rounds and lineages as text for people."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from audit.lineage import Lineage
from audit.published import Run
from audit.report import Report, Uncovered, Unproven
from protocol.errors import ProofError, printable
from protocol.transparency.leaf_codec import decode_leaf
from protocol.transparency.leaves import Withdrawal

ALIKE = 3  # names that are listed one by one
SHORT = 12  # hex digits of a digest in a table
SHOWN = (
    "seq", "group", "round", "attempt", "client", "summands", "size", "verdict", "revealed", "first",
)  # fmt: skip


class Bars:
    """A progress bar on standard error that disappears when it is done."""

    def __init__(self) -> None:
        console = Console(stderr=True, markup=False, emoji=False)
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def __call__(self, task: str, completed: int, total: int) -> None:
        """Move the bar of ``what``."""
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total)
        self._bars.update(self._tasks[task], completed=completed, total=total)


def print_report(report: Report) -> None:
    """The verdict per round, then everything that is wrong or open, in full sentences.

    Of the runs that it goes on from first, where the auditor has them.
    """
    console = _console()
    if report.before is not None:
        print_report(report.before)
    console.print(f"{report.origin}: {report.size} leaves, root {report.root[:SHORT]}…")
    if report.program:
        console.print(f"its plan and every adapter's release.json name program {report.program}")
    table = Table("round", "verdict", "clients", "verified", "unproven", "faults")
    for round_ in report.rounds:
        counts = (len(round_.verified), len(round_.unverified), len(round_.faults))
        table.add_row(str(round_.round), round_.verdict, str(round_.clients), *map(str, counts))
    console.print(table)
    for round_ in report.rounds:
        _print_findings(console, f"round {round_.round}: ", round_.unverified, round_.faults)
    _print_findings(console, "", report.unverified, report.faults)
    if report.privacy is not None:
        console.print(_spent(report), soft_wrap=True)
    if len(report.rounds) > 1 and report.rounds[-1].round < report.planned:
        newest = report.rounds[-1].round
        console.print(f"the plan has {report.planned} rounds, the log {newest} so far")
    for line in (*report.audits, *report.complaints):
        console.print(line, soft_wrap=True)
    for line in withdrawal_lines(report):
        console.print(line, soft_wrap=True)
    _print_findings(console, "assumed: ", report.assumed, ())
    _print_not_covered(console, report.not_covered)
    style = {"ok": "green", "unverifiable": "yellow", "failed": "red"}[report.verdict]
    console.print(f"verdict: {report.verdict}", style=style)


def withdrawal_lines(report: Report) -> Iterator[str]:
    """Who has withdrawn, and whether this run goes on from what one of them has touched."""
    for one in report.withdrawals:
        touched = "no adapter holds its updates"
        if one.first is not None:
            touched = f"adapters from round {one.first} on hold its updates"
        yield f"leaf {one.leaf}: {one.client} withdrew: {touched}; the last before is round {one.before}"
    while report.before is not None:
        taken, report = report.from_round, report.before
        for one in report.withdrawals:
            if one.first is not None and one.first <= taken:
                yield (
                    f"goes on from round {taken} of {report.origin}, which holds updates of "
                    f"{one.client}, who withdrew there"
                )


def print_rounds(run: Run) -> None:
    """A table of the log's rounds, and how many leaves of each kind there are."""
    console, log = _console(), run.copy
    console.print(f"{log.checkpoint.origin}: {log.checkpoint.size} leaves")
    console.print(f"log key: {log.key.encode()}", soft_wrap=True)
    console.print(f"plan {run.plan_digest[:SHORT]}…, base {run.manifest.fingerprint[:SHORT]}…")
    table = Table("round", "leaf", "attempt", "groups", "clients", "adapter", "")
    for row in round_rows(run):
        notes = [name for name in ("void", "released", "vectors deleted") if row[name]]
        notes += [f"{row['aborted']} aborted"] if row["aborted"] else []
        counts = (row["round"], row["leaf"], row["attempt"], row["groups"], row["clients"])
        table.add_row(*map(str, counts), row["adapter"][:SHORT], ", ".join(notes))
    console.print(table)
    kinds = Counter(leaf["kind"] for leaf in leaf_lines(log.entries))
    console.print(", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    for fault in run.log.faults:
        console.print(
            printable(f"! round {fault.round}: {fault.what}"), style="red", soft_wrap=True
        )


def round_rows(run: Run) -> list[dict[str, Any]]:
    """One row a round, as the log says."""
    released = {release.leaf.round for release in run.log.releases}
    deleted = {retention.leaf.round for retention in run.log.retentions}
    return [
        {
            "round": leaf.round,
            "leaf": round_.adapter.index,
            "attempt": leaf.attempt,
            "aborted": len(round_.aborts),
            "exchange": leaf.exchange,
            "groups": len(leaf.sums),
            "clients": sum(group_sum.summands for group_sum in leaf.sums),
            "adapter": leaf.adapter_out,
            "void": leaf.void,
            "released": leaf.round in released,
            "vectors deleted": leaf.round in deleted,
        }
        for round_ in run.log.rounds
        for leaf in (round_.adapter.leaf,)
    ]


def leaf_lines(entries: Sequence[bytes]) -> list[dict[str, Any]]:
    """Each leaf's index, kind and what places it."""
    lines = []
    for index, entry in enumerate(entries):
        try:
            leaf = decode_leaf(entry).leaf
        except ProofError as error:
            lines.append({"leaf": index, "kind": "?", "fault": error.cause})
            continue
        places = {name: getattr(leaf, name) for name in SHOWN if hasattr(leaf, name)}
        if isinstance(leaf, Withdrawal):
            places["client"] = leaf.request.client
        lines.append({"leaf": index, "kind": leaf.kind, **places})
    return lines


def print_lineage(lineage: Lineage) -> None:
    """From the base down to the release."""
    console = _console()
    lines = [
        f"base      {lineage.base}  ({lineage.base_source})",
        f"plan      {lineage.plan}  ({lineage.plan_name})",
        f"log       {lineage.origin}, {lineage.size} leaves",
    ]
    if (start := lineage.start) is not None:
        lines.append(
            f"goes on   from round {start['round']} of {start['origin']} ({start['size']} leaves, root "
            f"{start['root']}), after {start['rounds']} rounds"
        )
        lines += [f"          plan {digest}" for digest in start["plans"]]
    for step in lineage.steps:
        how = "void" if step.void else f"{step.clients} clients" if step.clients else step.exchange
        how = "the start" if step.round == 0 else how
        lines.append(f"round {step.round:<4}{step.adapter}  (leaf {step.leaf}, {how})")
    lines.append(f"published {lineage.published}")
    lines += [f"          {digest}  {name}" for name, digest in sorted(lineage.files.items())]
    if lineage.release is None:
        lines.append("release   none")
    else:
        lines.append(f"release   leaf {lineage.release.leaf}")
        lines += [f"          {digest}  {name}" for name, digest in lineage.release.files.items()]
        lines += [
            f"          {name} {value / 1000:.3f}"
            for name, value in lineage.release.metrics.items()
        ]
    for line in lines:
        console.print(printable(line), soft_wrap=True)


def _print_findings(
    console: Console, place: str, open_: Sequence[Unproven], faults: Sequence[str]
) -> None:
    for fault in faults:
        console.print(printable(f"! {place}{fault}"), style="red", soft_wrap=True)
    for finding in open_:
        console.print(f"? {place}{finding.what}; not proven: {finding.leaves}", soft_wrap=True)


def _print_not_covered(console: Console, not_covered: Sequence[Uncovered]) -> None:
    """By reason; many names that differ in their numbers alone are one pattern that fits them all."""
    groups: dict[tuple[str, tuple[str, ...]], dict[str, list[str]]] = {}
    for uncovered in not_covered:
        alike = groups.setdefault((uncovered.why, uncovered.parts), {})
        alike.setdefault(re.sub(r"[0-9]+", "*", uncovered.name), []).append(uncovered.name)
    for (why, parts), alike in groups.items():
        names = [
            name
            for pattern, matches in alike.items()
            for name in ([f"{pattern} ({len(matches)})"] if len(matches) > ALIKE else matches)
        ]
        listing = f" ({', '.join(parts)})" if parts else ""
        console.print(f"- not covered: {', '.join(names)}{listing}: {why}", soft_wrap=True)


def _spent(report: Report) -> str:
    privacy = report.privacy
    assert privacy is not None
    value = "not computed" if privacy.epsilon is None else f"{privacy.epsilon:.3f}"
    return (
        f"privacy ({privacy.mechanism} noise): {privacy.sums} sums, largest epsilon of a client {value} "
        f"of {privacy.budget:g} at delta {privacy.delta:g}"
    )


def _console() -> Console:
    return Console(markup=False, emoji=False, highlight=False)
