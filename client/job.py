"""One request to train, named by files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from client.kept_controls import Controls, FileControls
from client.leaving import check_leaving
from client.rows_cache import RowsCache
from client.settings import (
    base_of,
    client_name,
    controls_path,
    data_path,
    expand_mib_of,
    path_of,
    plan_at,
    plan_of,
    programs_path,
    threads_of,
)
from protocol.exchange import Contribution
from protocol.layout import Vector
from protocol.wire import Instruction

if TYPE_CHECKING:
    from flwr.app import Context

    from client.worker import Worker

rows_cache = RowsCache()


@dataclass(frozen=True, kw_only=True)
class Job:
    """Whose part of a round: plan file, base folder, file of rows; ``threads`` 0 is the engine's default.

    ``expand_mib``: memory for frozen weights as floats (:func:`client.engine.choice.engine_for`).
    ``programs``: where programs are kept when they cannot be beside the base. ``controls``: the folder of
    control variates, where the plan asks for them.
    """

    client: str
    plan: Path
    base: Path
    data: Path
    threads: int = 0
    expand_mib: int = 0
    programs: Path | None = None
    controls: Path | None = None


def job_of(context: Context) -> Job:
    """What this node trains with. Raises MachineError or PlanError for a setting that is missing."""
    asked = plan_of(context).local.scaffold > 0
    return Job(
        client=client_name(context),
        plan=path_of(context, "plan"),
        base=base_of(context),
        data=data_path(context),
        threads=threads_of(context),
        expand_mib=expand_mib_of(context),
        programs=programs_path(context),
        controls=controls_path(context) if asked else None,
    )


def contribution(
    job: Job, instruction: Instruction, adapter: Vector, round_0: Vector | None = None
) -> Contribution:
    """Train in this process; base and encoded rows stay in its memory for the next time.

    Raises PlanError, ArtefactError, DataError and UpdateError as :class:`client.worker.Worker` does.
    """
    worker = worker_of(job)
    worker.check(
        instruction, adapter, round_0
    )  # a request that does not belong reads no private data
    return worker.contribute(
        client=job.client,
        instruction=instruction,
        adapter=adapter,
        round_0=round_0,
        controls=_controls(job, worker),
        rows=rows_cache.get(job.data, worker),
        on_step=check_leaving,
    )


def _controls(job: Job, worker: Worker) -> Controls | None:
    if job.controls is None:
        return None
    return FileControls(job.controls, worker.plan.digest, job.client, worker.recipe.layout)


def worker_of(job: Job) -> Worker:
    """What trains it: base and program are opened and verified, no row is read. Raises as Worker does."""
    from client.worker import Worker

    return Worker(
        plan_at(job.plan),
        job.base,
        threads=job.threads,
        programs=job.programs,
        expand_mib=job.expand_mib,
    )
