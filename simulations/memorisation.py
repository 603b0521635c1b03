"""What an adapter has learnt by heart: secrets planted with one device, rows told from rows it never saw.

**Exposure** (Carlini et al., The Secret Sharer, arXiv 1802.08232): a secret of random digits stands in the
rows of one device. Among other secrets of the same form, which nobody has, its rank by loss is counted;
exposure is log2(secrets) - log2(rank). One that was not learnt has 1.4 bits in the mean, the likeliest of all
the most.

**Membership** (Yeom et al., arXiv 1709.01604, with the base as reference): how well the fall of a row's loss,
from the base to the adapter, tells rows that were trained on from test rows: the area under the ROC curve,
0.5 for nothing and 1 for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from client.data import Rows, load_rows
from client.training import predict
from client.worker import Worker
from protocol.encoding import seed_from
from protocol.layout import Tensors
from simulations.canaries import canary
from simulations.evaluation import Evaluator, finished_tensors
from simulations.files import read_json, write_json
from simulations.prepare import Prepared
from simulations.progress import Progress
from simulations.records import published_adapter

MEMORISATION = "memorisation.json"
OTHERS = 255  # secrets that nobody has, beside each
Losses = npt.NDArray[np.float64]
Json = dict[str, Any]


def measure_memorisation(
    prepared: Prepared, evaluator: Evaluator, progress: Progress
) -> Json | None:
    """Measure what the experiment asks for of the last round's adapter, unless it is on file.

    ``exposure`` (mean), ``exposures`` and ``exposure_most`` in bits, ``membership_auc`` and ``members``; None
    where nothing is asked for.
    """
    settings = prepared.experiment.memorisation
    if not settings.canaries and not settings.members:
        return None
    known: Json | None = read_json(prepared.out / MEMORISATION)
    if known is not None:
        return known
    progress.update("memorisation", 0, 2)
    worker, plan = evaluator.worker, prepared.plan
    after = finished_tensors(worker, published_adapter(prepared.out, plan.rounds))
    measured: Json = {}
    if settings.canaries:
        exposures = [_exposure(worker, after, number) for number in range(settings.canaries)]
        measured = {
            "exposure": float(np.mean(exposures)),
            "exposures": exposures,
            "exposure_most": math.log2(OTHERS + 1),
        }
    progress.update("memorisation", 1, 2)
    if settings.members:
        before = finished_tensors(worker, published_adapter(prepared.out, 0))
        members, others = _sampled(prepared, evaluator, settings.members)
        gains = [
            _mean_losses(worker, before, rows) - _mean_losses(worker, after, rows)
            for rows in (members, others)
        ]
        measured |= {"membership_auc": area_under_curve(*gains), "members": len(members)}
    write_json(prepared.out / MEMORISATION, measured)
    progress.update("memorisation", 2, 2)
    return measured


def _exposure(worker: Worker, adapter: Tensors, number: int) -> float:
    rows = [canary(worker.plan, number, which)[0] for which in range(OTHERS + 1)]
    return exposure(_losses(worker, adapter, Rows(texts=rows, targets=[""] * len(rows)))[:, 0])


def exposure(losses: Losses) -> float:
    """In bits, of the first of ``losses`` among all of them.

    Of several that are equal it has the middle place: secrets that a tokenizer does not tell apart, or that
    are cut away, are no secrets that were learnt.
    """
    others = losses[1:]
    rank = 1 + float((others < losses[0]).sum()) + float((others == losses[0]).sum()) / 2
    return math.log2(len(losses)) - math.log2(rank)


def area_under_curve(members: Losses, others: Losses) -> float:
    """The chance that a member's score is above another's, ties being half: Mann and Whitney."""
    apart = members[:, None] - others[None, :]
    return float((apart > 0).mean() + 0.5 * (apart == 0).mean())


def _sampled(prepared: Prepared, evaluator: Evaluator, count: int) -> tuple[Rows, Rows]:
    """As many rows that were trained on, of all devices, as test rows."""
    held_out = evaluator.held_out
    count = min(count, len(held_out))
    rng = np.random.default_rng(seed_from("members", prepared.plan.seed))
    everybody = list(_rows_of_all(prepared))
    rng.shuffle(everybody)
    chosen = rng.permutation(len(held_out))[:count]
    members = [text for text, _ in everybody[:count]]
    others = [held_out.texts[at] for at in chosen]
    return (
        Rows(texts=members, targets=[""] * len(members)),
        Rows(texts=others, targets=[""] * len(others)),
    )


def _rows_of_all(prepared: Prepared) -> Iterator[tuple[Any, Any]]:
    for partition in range(prepared.experiment.population.clients):
        rows = load_rows(prepared.client_file(partition), prepared.plan.task)
        yield from zip(rows.texts, rows.targets, strict=True)


def _mean_losses(worker: Worker, adapter: Tensors, rows: Rows) -> Losses:
    """(rows,) in nats a token."""
    sums = _losses(worker, adapter, rows)
    return sums[:, 0] / np.maximum(sums[:, 1], 1)


def _losses(worker: Worker, adapter: Tensors, rows: Rows) -> Losses:
    """(rows, 3), as a program gives them."""
    return predict(worker.engine, adapter, worker.encode(rows)).astype(np.float64)


def metrics_of(measured: Json | None) -> dict[str, float]:
    """Those that a log has beside the quality."""
    names: Sequence[str] = ("exposure", "membership_auc")
    return {name: measured[name] for name in names if measured and name in measured}
