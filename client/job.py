"""One request to train, named by files: done in this process, or handed to the site's trainer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from client.rows_cache import RowsCache
from client.settings import base_of, client_name, data_path, path_of, plan_at, threads_of
from protocol.exchange import Contribution
from protocol.layout import Vector
from protocol.wire import Instruction

if TYPE_CHECKING:
    from collections.abc import Callable

    from flwr.app import Context

rows_cache = RowsCache()


@dataclass(frozen=True, kw_only=True)
class Job:
    """Whose part of a round: plan file, base folder, file of rows; ``threads`` 0 is torch's default."""

    client: str
    plan: Path
    base: Path
    data: Path
    threads: int = 0


def job_of(context: Context) -> Job:
    """What this node trains with. Raises MachineError or PlanError for a setting that is missing."""
    return Job(
        client=client_name(context),
        plan=path_of(context, "plan"),
        base=base_of(context),
        data=data_path(context),
        threads=threads_of(context),
    )


def contribution(
    job: Job,
    instruction: Instruction,
    adapter: Vector,
    *,
    on_step: Callable[[int], None] | None = None,
) -> Contribution:
    """Train in this process; base and encoded rows stay in its memory for the next time.

    ``on_step`` is called after every optimiser step. Raises PlanError, ArtefactError, DataError and
    UpdateError as :class:`client.worker.Worker` does.
    """
    plan = plan_at(job.plan)
    from client.worker import worker_for

    _set_threads(job.threads)
    worker = worker_for(plan, job.base)
    worker.check(instruction, adapter)  # a request that does not belong reads no private data
    return worker.contribute(
        client=job.client,
        instruction=instruction,
        adapter=adapter,
        rows=rows_cache.get(job.data, worker),
        on_step=on_step,
    )


def _set_threads(threads: int) -> None:
    import torch

    if threads > 0 and threads != torch.get_num_threads():
        torch.set_num_threads(threads)
