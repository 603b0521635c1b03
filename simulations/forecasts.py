"""Before the first round: what the plan warns of, and how long the run will take (``forecast.json``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from client.data import Rows, load_rows
from client.examples import Examples
from client.worker import Worker
from simulations.clients import client_name
from simulations.evaluation import Evaluator
from simulations.files import read_json, write_json
from simulations.own_rows import load_own_rows
from simulations.pace import STEPS, WARM, Pace, Work, forecast_parts, measure_pace
from simulations.personal import personal_devices
from simulations.prepare import Prepared
from simulations.progress import Progress, duration
from simulations.timings import Timings

FORECAST = "forecast.json"


def announce(
    prepared: Prepared, evaluator: Evaluator, timings: Timings, progress: Progress
) -> None:
    """Say what the plan warns of; forecast the run, unless that was done before, and say that."""
    for warning in prepared.warnings:
        progress.warn(warning.line)
    if read_json(prepared.out / FORECAST) is None:
        with timings.part("forecast"):
            pace, parts = forecast_run(prepared, evaluator.worker)
            write_json(prepared.out / FORECAST, {"pace": pace.to_dict(), "parts": parts})
    pace, parts = _load(prepared.out)
    progress.line(forecast_line(pace, parts, prepared.plan.local.batch_size))


def forecast_line(pace: Pace, parts: dict[str, float], batch: int) -> str:
    """The forecast for people."""
    return (
        f"about {duration(sum(parts.values()))} in all, {duration(parts['federated'])} of them rounds: "
        f"{STEPS} steps of {batch} rows took {1000 * pace.step:.0f} ms each"
    )


def load_forecast(out: Path) -> dict[str, float]:
    """Seconds by part; empty when none was made."""
    stored: dict[str, Any] = read_json(out / FORECAST, {"parts": {}})
    return dict(stored["parts"])


def forecast_run(prepared: Prepared, worker: Worker) -> tuple[Pace, dict[str, float]]:
    """Time a few steps of a prepared run; the pace, and seconds by part."""
    pace = measure_pace(worker, _sample(prepared, worker))
    yardsticks = prepared.experiment.yardsticks
    own, test_rows = load_own_rows(prepared.out), prepared.rows[1]
    work = Work(
        clients=prepared.sizes,
        test_rows=test_rows,
        yardsticks=yardsticks,
        own_rows=[own.count(client_name(n), test_rows) for n in personal_devices(prepared)],
    )
    return pace, forecast_parts(prepared.plan, pace, work)


def _load(out: Path) -> tuple[Pace, dict[str, float]]:
    stored = read_json(out / FORECAST)
    return Pace(**stored["pace"]), dict(stored["parts"])


def _sample(prepared: Prepared, worker: Worker) -> Examples:
    """Rows of as many clients as are needed to fill the steps that are timed."""
    task, need = prepared.plan.task, (WARM + STEPS) * prepared.plan.local.batch_size
    texts: list[Any] = []
    targets: list[Any] = []
    for partition in range(prepared.experiment.population.clients):
        rows = load_rows(prepared.client_file(partition), task)
        texts += rows.texts
        targets += rows.targets
        if len(texts) >= need:
            break
    return worker.encode(Rows(texts=texts[:need], targets=targets[:need]))
