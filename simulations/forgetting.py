"""What an adapter that goes on from other runs still knows of what those had learnt. (docs/adr/0068)

Of every run before: the quality on its test rows of the adapter that was taken over from it, and of the last
round's. Both are run by this run's plan. Base, task and the adapter's settings are the same all along such a
chain (P-4.11).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from client.data import load_rows
from client.examples import Examples
from protocol.errors import ArtefactError, DataError
from protocol.plan import Plan
from simulations.chain import runs_before
from simulations.evaluation import Evaluator
from simulations.files import read_json, write_json
from simulations.prepare import TEST, Prepared
from simulations.progress import Progress
from simulations.records import published_adapter

FORGETTING = "forgetting.json"
Json = dict[str, Any]


def measure_forgetting(prepared: Prepared, evaluator: Evaluator, progress: Progress) -> list[Json]:
    """For each run before, the latest first, unless it is on file.

    ``run`` (its plan's name), ``rows``, and of the task's quality ``then``, ``now`` and ``forgotten``, the
    part that was lost: below 0 where it was improved. Where it cannot be measured: ``run`` and ``why``.
    """
    known: list[Json] | None = read_json(prepared.out / FORGETTING)
    if known is not None:
        return known
    measured: list[Json] = []
    later, before = prepared.out, list(runs_before(prepared.out, prepared.plan))
    for done, (folder, plan) in enumerate(before):
        progress.update("tasks before", done, len(before))
        entry = {"run": plan.name} | _measured(prepared, evaluator, folder, plan, later)
        measured.append(entry)
        progress.line(_line(prepared, entry))
        later = folder
    write_json(prepared.out / FORGETTING, measured)
    return measured


def _measured(
    prepared: Prepared, evaluator: Evaluator, folder: Path, plan: Plan, later: Path
) -> Json:
    """Of the run in ``folder``, whose adapter is round 0 of the run in ``later``."""
    try:
        rows = _rows(evaluator, folder, plan)
        then = evaluator.measure_on(published_adapter(later, 0), rows)
    except (ArtefactError, DataError) as error:
        return {"why": error.cause}
    last = published_adapter(prepared.out, prepared.plan.rounds)
    now = evaluator.measure_on(last, rows)
    sign = 1 if prepared.plan.task.QUALITY.higher_is_better else -1
    return {
        "rows": len(rows),
        "then": then.quality,
        "now": now.quality,
        "forgotten": sign * (then.quality - now.quality),
    }


def _rows(evaluator: Evaluator, folder: Path, plan: Plan) -> Examples:
    """The test rows of the run in ``folder``. Raises ArtefactError, DataError."""
    path = folder / TEST
    if not path.is_file():
        raise ArtefactError("its test rows are not there", f"restore {path}")
    return evaluator.worker.encode(load_rows(path, plan.task))


def _line(prepared: Prepared, entry: Json) -> str:
    if "why" in entry:
        return f"on the test rows of {entry['run']}: not measured, {entry['why']}"
    quality = prepared.plan.task.QUALITY
    return (
        f"on the test rows of {entry['run']}: {quality.said(entry['now'])}, "
        f"{quality.figure(entry['then'])} when it was taken over"
    )


def load_forgetting(out: Path) -> list[Json]:
    """What is on file, as :func:`measure_forgetting` has it."""
    entries: list[Json] = read_json(out / FORGETTING, [])
    return entries
