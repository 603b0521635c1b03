"""Files that a run has beside the published ones, as far as the log knows what they must say. (P-8.16)

They are nobody's proof; but where they are, what they say and the log says may not differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from audit.budget import LEDGER
from audit.published import REMEDY, Run, adapter_path, record_path
from audit.records import UNAWAITED, same
from audit.report import Findings
from audit.sources import MissingError
from audit.tiles import check_tiles
from protocol.bitmap_form import sent_size
from protocol.errors import FedgeError, ProofError
from protocol.peft_format import EDGE_FILE, RELEASE_FILE, parse_release
from protocol.privacy.ledger import parse_entries

SUMMARY, EVALUATIONS = "summary.json", "evaluations.json"
OWN = "the run's own account of itself: nothing in the log shows it"


def check_beside(run: Run, findings: Findings) -> None:
    """Stale tiles, the ledger's file, the summary and the evaluations, where they are."""
    checks: Mapping[str, Callable[[], None]] = {
        "the tiles of earlier checkpoints": lambda: check_tiles(run),
        LEDGER: lambda: _check_ledger(run),
        EVALUATIONS: lambda: _check_evaluations(run),
        SUMMARY: lambda: _check_summary(run),
    }
    for what, check in checks.items():
        if what not in (LEDGER, EVALUATIONS, SUMMARY) or run.source.exists(what):
            with findings.checking(what):
                check()


def _check_ledger(run: Run) -> None:
    """Its lines are those of the `dp` leaves; what is not logged yet may follow."""
    lines = parse_entries(_text(run, LEDGER), source=LEDGER)
    logged = [each.leaf.entry for each in run.log.spent]
    if lines[: len(logged)] != logged:
        raise _bad(f"{LEDGER} has other lines than the log's `dp` leaves")
    if len(lines) > len(logged):
        run.coverage.leave(LEDGER, "lines that are not in the log yet", "last lines")
    ours = "".join(entry.model_dump_json() + "\n" for entry in lines)
    run.coverage.spelled(LEDGER, _text(run, LEDGER).encode(), ours.encode())


def _check_evaluations(run: Run) -> None:
    """A quality that an `eval` leaf tells of is that leaf's, to the thousandth."""
    name = run.plan.task.QUALITY.name
    said = {each.leaf.round: each.leaf.metrics.get(name) for each in run.log.evaluations}
    try:
        for entry in _json(run, EVALUATIONS)["test"]:
            logged = said.get(entry["round"])
            if logged is not None and round(1000 * entry[name]) != logged:
                raise _bad(
                    f"round {entry['round']} of {EVALUATIONS} is not what its `eval` leaf says"
                )
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _bad(f"{EVALUATIONS} holds no evaluations") from None
    run.coverage.leave(EVALUATIONS, OWN, "spelling", *_json(run, EVALUATIONS))


def _check_summary(run: Run) -> None:
    said, meant = _json(run, SUMMARY), _meant(run)
    for field, value in meant.items():
        if field in said and not same(said[field], value):
            raise _bad(f"`{field}` of {SUMMARY} is not what the run's log and records say")
    quality = {each.leaf.round: each.leaf.metrics for each in run.log.evaluations}
    name = run.plan.task.QUALITY.name
    logged, field = quality.get(run.log.rounds[-1].number, {}).get(name), f"{name}_federated"
    try:
        if logged is not None and round(1000 * said[field]) != logged:
            raise _bad(f"`{field}` of {SUMMARY} is not what its `eval` leaf says")
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _bad(f"{SUMMARY} names no {name}") from None
    known = {*meant, *(() if logged is None else (field,))}
    run.coverage.leave(SUMMARY, OWN, "spelling", *(said.keys() - known), *(known - said.keys()))


def _meant(run: Run) -> dict[str, Any]:
    """What follows from the last round's leaves and files, and from the records as they are logged."""
    last = run.log.rounds[-1].adapter.leaf
    meant: dict[str, Any] = {
        "rounds": last.round,
        "exchange": last.exchange,
        "adapter_digest": last.published,
    }
    try:
        records = [_json(run, record_path(each.number)) for each in run.log.rounds[1:]]
        privacy = records[-1]["privacy"] or {}
        meant |= {
            "epsilon": privacy.get("epsilon"),
            "delta": privacy.get("delta"),
            "dropped": sum(len(record["dropped"]) for record in records),
            "unawaited": sum(
                drop["reason"] == UNAWAITED for record in records for drop in record["dropped"]
            ),
        }
        for field, key in (
            ("upload_bytes_per_client_round", "bytes_up_per_client"),
            ("download_bytes_per_client_round", "bytes_down_per_client"),
        ):
            meant[field] = round(sum(record[key] for record in records) / len(records))
    except (MissingError, LookupError, TypeError, AttributeError):
        pass  # no record in this copy: then these fields are listed
    try:
        note = parse_release(
            _text(run, adapter_path(last.round, RELEASE_FILE)), source=RELEASE_FILE
        )
        if note.parity is not None:
            meant["parity_max_relative"] = note.parity.max_relative
            meant["parity_label_agreement"] = note.parity.label_agreement
            adapter = run.source.read(adapter_path(last.round, EDGE_FILE))
            meant["adapter_bytes"] = len(adapter)
            meant["adapter_sent_bytes"] = sent_size(adapter)
    except FedgeError:
        pass  # its round says so
    return meant


def _json(run: Run, name: str) -> dict[str, Any]:
    try:
        value = json.loads(run.source.read(name))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _bad(f"{name} is no JSON object")
    return value


def _text(run: Run, name: str) -> str:
    try:
        return run.source.read(name).decode()
    except UnicodeDecodeError:
        raise _bad(f"{name} is no text") from None


def _bad(fault: str) -> ProofError:
    return ProofError(fault, REMEDY)
