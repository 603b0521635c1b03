"""The runs that a run goes on from, as far as they are still there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from protocol.plan import Plan, plan_from
from simulations.files import read_json
from simulations.prepare import MARKER, PLAN, START_RUN


def runs_before(out: Path, plan: Plan) -> Iterator[tuple[Path, Plan]]:
    """(folder, its plan) of each run that ``plan`` in ``out`` goes on from, the latest first.

    Ends at the first that is not there, or is another than the plan names.
    """
    for digest in reversed(plan.start.plans if plan.start else []):
        name = (read_json(out / MARKER) or {}).get(START_RUN)
        if not name:
            return
        out = (out / name).resolve()
        document = read_json(out / PLAN)
        if document is None:
            return
        before = plan_from(document, source=str(out / PLAN))
        if before.digest != digest:
            return
        yield out, before
