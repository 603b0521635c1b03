"""What federated training is compared with: all rows in one place, and devices on their own.

Both start from the same adapter as the federated run, use the same optimiser settings, train all
parts (of a core: it and the head; A and B are no parameters then), and pass over each row
as often as the federated run does on average (:func:`passes`). Results are saved one by one, so
that a resumed run repeats none of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from client.data import Rows, load_rows
from client.training import train
from client.worker import Worker
from protocol.encoding import seed_from
from protocol.errors import UpdateError
from protocol.layout import Tensors
from protocol.recipe import Recipe
from simulations.clients import client_name, named
from simulations.evaluation import Evaluator
from simulations.files import read_json, write_json
from simulations.prepare import LISTED, Prepared
from simulations.progress import Progress, duration
from simulations.records import published_adapter
from simulations.scores import load_scores, save_scores, verify_finite
from simulations.tasks import Scores
from simulations.timings import Timings

YARDSTICKS, POOLED = "yardsticks.json", "all data in one place"
DIVERGED = "its training diverged, so there is no figure (lower local.learning_rate)"


def run_yardsticks(
    prepared: Prepared, evaluator: Evaluator, *, timings: Timings, progress: Progress
) -> dict[str, Any]:
    """Train and measure what the experiment asks for and is not on file yet.

    Returns the content of ``yardsticks.json``.
    """
    settings, yardsticks = prepared.experiment.yardsticks, load_yardsticks(prepared)
    done, total = 0, int(settings.pooled) + _alone_count(prepared)
    progress.update("yardsticks", done, total)
    if settings.pooled:
        if "pooled" not in yardsticks and POOLED not in diverged(yardsticks):
            with timings.part("pooled"), _kept(prepared, yardsticks, POOLED, progress):
                yardsticks["pooled"] = _pooled(prepared, evaluator)
            if "pooled" in yardsticks:
                yardsticks["pooled"]["seconds"] = timings.parts["pooled"]
                write_json(prepared.out / YARDSTICKS, yardsticks)
                measured = yardsticks["pooled"]
                progress.line(_line(prepared, POOLED, measured, timings.parts["pooled"]))
        done += 1
        progress.update("yardsticks", done, total)
    for name, partition in _alone_devices(prepared):
        title = f"{named(name, read_json(prepared.out / LISTED))} alone"
        if name not in yardsticks.get("alone", {}).get("per_client", {}) and title not in diverged(
            yardsticks
        ):
            scores = None
            with timings.part("alone"), _kept(prepared, yardsticks, title, progress):
                scores = _alone(prepared, evaluator, partition)
            if scores is not None:
                save_scores(prepared.out, "alone", scores, name)
                _add_alone(prepared, evaluator, yardsticks, name, scores.quality)
                write_json(prepared.out / YARDSTICKS, yardsticks)
                progress.line(_line(prepared, title, scores.figures, timings.parts["alone"]))
        done += 1
        progress.update("yardsticks", done, total)
    return yardsticks


def measure_before(prepared: Prepared, evaluator: Evaluator, progress: Progress) -> None:
    """Measure what the first round began with, the base alone or an earlier adapter, unless it is on file.

    Raises PlanError where its answers are no numbers.
    """
    yardsticks = load_yardsticks(prepared)
    if "before" in yardsticks:
        return
    scores = evaluator.measure(published_adapter(prepared.out, 0))
    verify_finite(scores, "before the first round")
    yardsticks["before"] = scores.figures
    write_json(prepared.out / YARDSTICKS, yardsticks)
    quality = prepared.plan.task.QUALITY
    progress.line(f"before: {quality.said(scores.quality)}, loss {scores.mean_loss:.3f}")


def diverged(yardsticks: Mapping[str, Any]) -> list[str]:
    """The yardsticks whose training diverged, by what reports call them."""
    return list(yardsticks.get("diverged", []))


@contextmanager
def _kept(
    prepared: Prepared, yardsticks: dict[str, Any], title: str, progress: Progress
) -> Iterator[None]:
    """A yardstick that diverges is no reason to lose the run that it stands beside."""
    try:
        yield
    except UpdateError:
        yardsticks["diverged"] = [*diverged(yardsticks), title]
        write_json(prepared.out / YARDSTICKS, yardsticks)
        progress.warn(f"{title}: {DIVERGED}")


def _line(prepared: Prepared, title: str, measured: Mapping[str, Any], seconds: float) -> str:
    quality = prepared.plan.task.QUALITY
    return (
        f"{title}: {quality.said(measured[quality.name])}, loss {measured['loss']:.3f}; "
        f"{duration(seconds)} so far"
    )


def load_yardsticks(prepared: Prepared) -> dict[str, Any]:
    """What was measured so far."""
    yardsticks: dict[str, Any] = read_json(prepared.out / YARDSTICKS, {})
    return yardsticks


def passes(prepared: Prepared, partitions: Sequence[int] | None = None) -> float:
    """How often the federated run passes over a row of these devices (all of them without).

    ``rounds * cohort.size / clients * local.epochs``, less what ``local.max_steps`` cuts off.
    """
    plan, clients = prepared.plan, prepared.experiment.population.clients
    counts = [len(_rows_of(prepared, partition)) for partition in partitions or range(clients)]
    bound = plan.local.max_steps * plan.local.batch_size or math.inf
    passed = sum(min(plan.local.epochs * count, bound) for count in counts)
    return plan.rounds * plan.cohort.size / clients * passed / sum(counts)


def _pooled(prepared: Prepared, evaluator: Evaluator) -> dict[str, Any]:
    clients = prepared.experiment.population.clients
    parts = [_rows_of(prepared, partition) for partition in range(clients)]
    rows = Rows(
        texts=[text for part in parts for text in part.texts],
        targets=[target for part in parts for target in part.targets],
    )
    times = passes(prepared)
    seed = seed_from("yardstick", prepared.plan.seed, "pooled")
    scores = evaluator.measure(_trained(prepared, rows, seed=seed, epochs=times))
    save_scores(prepared.out, "pooled", scores)
    return {**scores.figures, "passes": times, "rows": len(rows)}


def _alone(prepared: Prepared, evaluator: Evaluator, partition: int) -> Scores:
    name = client_name(partition)
    seed = seed_from("yardstick", prepared.plan.seed, "alone", name)
    rows, times = _rows_of(prepared, partition), passes(prepared, [partition])
    trained = _trained(prepared, rows, seed=seed, epochs=times)
    return evaluator.measure(trained, rows=_test_sample(prepared, len(evaluator)))


def _trained(prepared: Prepared, rows: Rows, *, seed: int, epochs: float) -> Tensors:
    plan = prepared.plan
    recipe = Recipe(plan=plan, manifest=prepared.manifest)
    start, parts = recipe.start(), recipe.trainable
    worker = Worker(plan, prepared.base, parts=[parts])
    # A client's bound on steps is per round; here the passes are the bound.
    local = plan.local.model_copy(update={"max_steps": 0})
    encoded = worker.encode(rows)
    return train(
        worker.engine, start, encoded, local=local, parts=parts, seed=seed, epochs=epochs
    ).tensors


def _rows_of(prepared: Prepared, partition: int) -> Rows:
    return load_rows(prepared.client_file(partition), prepared.plan.task)


def _alone_count(prepared: Prepared) -> int:
    return min(prepared.experiment.yardsticks.alone, prepared.experiment.population.clients)


def _alone_devices(prepared: Prepared) -> Iterator[tuple[str, int]]:
    """The devices trained alone: a seeded sample, not the ones that happen to come first."""
    clients = prepared.experiment.population.clients
    rng = np.random.default_rng(seed_from("alone", prepared.plan.seed))
    for partition in sorted(rng.permutation(clients)[: _alone_count(prepared)].tolist()):
        yield client_name(partition), partition


def _test_sample(prepared: Prepared, total: int) -> list[int] | None:
    size = prepared.experiment.yardsticks.alone_test_rows
    if not 0 < size < total:
        return None
    rng = np.random.default_rng(seed_from("alone-test", prepared.plan.seed))
    return sorted(rng.permutation(total)[:size].tolist())


def _add_alone(
    prepared: Prepared, evaluator: Evaluator, yardsticks: dict[str, Any], name: str, quality: float
) -> None:
    per_client = {**yardsticks.get("alone", {}).get("per_client", {}), name: quality}
    sample = _test_sample(prepared, len(evaluator))
    measured = list(load_scores(prepared.out, prepared.plan.task.kind)[1].values())
    quality_name = prepared.plan.task.QUALITY.name
    yardsticks["alone"] = {
        "mean": float(np.mean(list(per_client.values()))),
        **{name: _mean(name, measured) for name in measured[0].figures if name != quality_name},
        "per_client": per_client,
        "test_rows": len(evaluator) if sample is None else len(sample),
        "passes": passes(prepared, [number for _, number in _alone_devices(prepared)]),
    }


def _mean(name: str, measured: Sequence[Scores]) -> float:
    return float(np.mean([scores.figures[name] for scores in measured]))
