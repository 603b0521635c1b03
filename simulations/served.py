"""How the last round's adapter serves every device: the quality on rows that each keeps out of training.

For tasks whose answers are texts, which have no labels to reckon it from. (docs/adr/0036)
"""

from __future__ import annotations

from client.data import load_rows
from simulations.clients import client_name
from simulations.evaluation import Evaluator, finished_tensors
from simulations.files import read_json, write_json
from simulations.prepare import Prepared
from simulations.progress import Progress
from simulations.records import published_adapter

SERVED = "served.json"


def measure_clients(
    prepared: Prepared, evaluator: Evaluator, progress: Progress
) -> dict[str, float]:
    """The quality by client, unless it is on file; of none where the plan keeps no rows out."""
    known: dict[str, float] | None = read_json(prepared.out / SERVED)
    if known is not None:
        return known
    plan, worker = prepared.plan, evaluator.worker
    served: dict[str, float] = {}
    if not plan.task.outputs and plan.evaluation.holdout > 0:
        adapter = finished_tensors(worker, published_adapter(prepared.out, plan.rounds))
        clients = prepared.experiment.population.clients
        for partition in range(clients):
            progress.update("devices measured", partition, clients)
            rows = worker.encode(load_rows(prepared.client_file(partition), plan.task))
            _, kept_out = worker.split(client_name(partition), rows)
            quality = plan.task.quality_of(worker.score(adapter, kept_out).metrics)
            if quality is not None:
                served[client_name(partition)] = quality
    write_json(prepared.out / SERVED, served)
    return served
