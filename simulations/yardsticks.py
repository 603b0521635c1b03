"""What federated training is compared with: all rows in one place, devices on their own, and personal ones.

The first two start from the same adapter as the federated run, use the same optimiser settings, train all
parts (of a core: it and the head; A and B are no parameters then), and pass over each row as often as the
federated run does on average (:func:`passes`). The third is :mod:`simulations.personal`. Results are saved
one by one, so that a resumed run repeats none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np

from protocol.encoding import seed_from
from protocol.errors import UpdateError
from protocol.layout import Tensors
from simulations.clients import client_name, named
from simulations.evaluation import Evaluator
from simulations.files import read_json, write_json
from simulations.own_rows import load_own_rows
from simulations.personal import Personal, means, personal_devices, sampled
from simulations.prepare import LISTED, Prepared
from simulations.progress import Progress, duration
from simulations.records import published_adapter
from simulations.scores import load_scores, save_scores, verify_finite
from simulations.tasks import Scores
from simulations.timings import Timings
from simulations.yardstick_training import participants, passes, pooled_rows, rows_of, trained

Json = dict[str, Any]
YARDSTICKS, POOLED = "yardsticks.json", "all data in one place"
DIVERGED = "its training diverged, so there is no figure (lower local.learning_rate)"


def run_yardsticks(
    prepared: Prepared, evaluator: Evaluator, *, timings: Timings, progress: Progress
) -> Json:
    """Train and measure what the experiment asks for and is not on file yet.

    Returns the content of ``yardsticks.json``.
    """
    run = _Yardsticks(prepared, evaluator, timings, progress)
    alone, personal = _alone_devices(prepared), personal_devices(prepared)
    jobs: list[Callable[[], None]] = []
    if prepared.experiment.yardsticks.pooled:
        jobs.append(run.pooled)
    jobs += [partial(run.alone, partition) for partition in alone]
    jobs += [partial(run.personal, partition) for partition in personal]
    progress.update("yardsticks", 0, len(jobs))
    for done, job in enumerate(jobs, 1):
        job()
        progress.update("yardsticks", done, len(jobs))
    asked = min(prepared.experiment.yardsticks.personal, len(participants(prepared)))
    if len(personal) < asked:
        progress.warn(f"only {len(personal)} of {asked} devices have test rows of their own")
    return run.known


class _Yardsticks:
    """Each is trained unless it is on file or has diverged; ``known``: the content of the file."""

    def __init__(
        self, prepared: Prepared, evaluator: Evaluator, timings: Timings, progress: Progress
    ) -> None:
        self._prepared, self._evaluator = prepared, evaluator
        self._timings, self._progress = timings, progress
        self._personal = personal_devices(prepared)
        self.known = load_yardsticks(prepared)

    def pooled(self) -> None:
        """All rows in one place."""
        if "pooled" in self.known or POOLED in diverged(self.known):
            return
        with self._trained("pooled", POOLED):
            self.known["pooled"] = _pooled(self._prepared, self._evaluator)
        if "pooled" in self.known:
            self.known["pooled"]["seconds"] = self._timings.parts["pooled"]
            self._save()
            self._say(POOLED, self.known["pooled"], "pooled")

    def alone(self, partition: int) -> None:
        """A device with its own rows; of one that is personalised too on its own test rows besides."""
        name, title = client_name(partition), f"{self._named(partition)} alone"
        if name in self.known.get("alone", {}).get("per_client", {}):
            return
        if title in diverged(self.known):
            return
        scores = None
        with self._trained("alone", title):
            adapter = _alone(self._prepared, partition)
            if partition in self._personal:
                own = self._devices.quality(name, adapter)
                self.known["alone_on_own"] = {**self.known.get("alone_on_own", {}), name: own}
            sample = _test_sample(self._prepared, len(self._evaluator))
            scores = self._evaluator.measure(adapter, rows=sample)
        if scores is not None:
            save_scores(self._prepared.out, "alone", scores, name)
            _add_alone(
                self._prepared,
                self._evaluator,
                self.known,
                name,
                scores.quality,
                times=self._alone_passes,
            )
            self._save()
            self._say(title, scores.figures, "alone")

    def personal(self, partition: int) -> None:
        """A device that goes on from the last round's adapter."""
        name, title = client_name(partition), f"{self._named(partition)} personal"
        personal = self.known.get("personal", {"per_client": {}})
        if name in personal["per_client"] or title in diverged(self.known):
            return
        measured = None
        with self._trained("personal", title):
            measured = self._devices.measure(partition)
        if measured is not None:
            if name in (alone := self.known.get("alone_on_own", {})):
                measured["alone"] = alone[name]
            per_client = {**personal["per_client"], name: measured}
            own = load_own_rows(self._prepared.out)
            self.known["personal"] = {
                "by": own.by,
                "mean": means(per_client),
                "per_client": per_client,
            }
            self._save()
            quality = self._prepared.plan.task.QUALITY
            self._progress.line(
                f"{title}: {quality.said(measured['personal'])} on its own test rows, "
                f"{quality.figure(measured['federated'])} before"
            )

    @cached_property
    def _alone_passes(self) -> float:
        """Over the rows of all that are trained alone, which are many files."""
        return passes(self._prepared, _alone_devices(self._prepared))

    @cached_property
    def _devices(self) -> Personal:
        return Personal(self._prepared, self._evaluator)

    def _named(self, partition: int) -> str:
        return named(client_name(partition), read_json(self._prepared.out / LISTED))

    @contextmanager
    def _trained(self, part: str, title: str) -> Iterator[None]:
        """A yardstick that diverges is no reason to lose the run that it stands beside."""
        with self._timings.part(part):
            try:
                yield
            except UpdateError:
                self.known["diverged"] = [*diverged(self.known), title]
                self._save()
                self._progress.warn(f"{title}: {DIVERGED}")

    def _save(self) -> None:
        write_json(self._prepared.out / YARDSTICKS, self.known)

    def _say(self, title: str, measured: Mapping[str, Any], part: str) -> None:
        quality, seconds = self._prepared.plan.task.QUALITY, self._timings.parts[part]
        self._progress.line(
            f"{title}: {quality.said(measured[quality.name])}, loss {measured['loss']:.3f}; "
            f"{duration(seconds)} so far"
        )


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


def load_yardsticks(prepared: Prepared) -> Json:
    """What was measured so far."""
    yardsticks: Json = read_json(prepared.out / YARDSTICKS, {})
    return yardsticks


def _pooled(prepared: Prepared, evaluator: Evaluator) -> Json:
    rows, times = pooled_rows(prepared), passes(prepared)
    seed = seed_from("yardstick", prepared.plan.seed, "pooled")
    scores = evaluator.measure(trained(prepared, rows, seed=seed, epochs=times))
    save_scores(prepared.out, "pooled", scores)
    return {**scores.figures, "passes": times, "rows": len(rows)}


def _alone(prepared: Prepared, partition: int) -> Tensors:
    seed = seed_from("yardstick", prepared.plan.seed, "alone", client_name(partition))
    rows, times = rows_of(prepared, partition), passes(prepared, [partition])
    return trained(prepared, rows, seed=seed, epochs=times)


def _alone_devices(prepared: Prepared) -> list[int]:
    """The devices trained alone: a seeded sample, not the ones that come first; and all personal ones."""
    some = sampled(prepared)[: prepared.experiment.yardsticks.alone]
    return sorted({*some, *personal_devices(prepared)})


def _test_sample(prepared: Prepared, total: int) -> list[int] | None:
    size = prepared.experiment.yardsticks.alone_test_rows
    if not 0 < size < total:
        return None
    rng = np.random.default_rng(seed_from("alone-test", prepared.plan.seed))
    return sorted(rng.permutation(total)[:size].tolist())


def _add_alone(
    prepared: Prepared,
    evaluator: Evaluator,
    yardsticks: Json,
    name: str,
    quality: float,
    *,
    times: float,
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
        "passes": times,
    }


def _mean(name: str, measured: Sequence[Scores]) -> float:
    return float(np.mean([scores.figures[name] for scores in measured]))
