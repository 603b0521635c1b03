"""Event files for TensorBoard and a SQLite file for MLflow, by these packages themselves.

The extra `tracking` has both. A run is written whole or not at all, once under one name; steps are rounds
counted over the runs before as well, so that the curves of runs that go on are one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from protocol.errors import ArtefactError
from protocol.plan import Plan
from server.history import Event
from storage.whole import folder_that_appears

LONGEST_SETTING = 6000  # characters of a parameter that MLflow takes
SEVERAL = 1000  # metrics of one call


def _points(events: Sequence[Event]) -> Iterator[tuple[str, Event, float]]:
    """(name, event, value) of every number."""
    for event in events:
        for name, value in event.values.items():
            yield f"{event.event}/{name}", event, value


def write_tensorboard(folder: Path, plan: Plan, events: Sequence[Event]) -> Path:
    """A folder named by the plan, with one file of scalars. Raises ArtefactError when it is there."""
    from tensorboard.compat.proto.event_pb2 import Event as Record
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    target = folder / plan.name
    if target.exists():
        raise ArtefactError(f"{target} exists already", "remove it, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with folder_that_appears(target) as new:
        writer = EventFileWriter(str(new))
        for tag, event, value in _points(events):
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(Record(wall_time=event.time, step=event.turn, summary=summary))
        writer.close()
    return target


def write_mlflow(file: Path, plan: Plan, events: Sequence[Event]) -> Path:
    """A finished run in the file's experiment `fedge`. Raises ArtefactError when it is there."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    from fedge.metrics import settings_of

    if not file.resolve().parent.is_dir():
        raise ArtefactError(f"{file} is in no folder", "make the folder first")
    client = MlflowClient(tracking_uri=f"sqlite:///{file.resolve()}")
    known = client.get_experiment_by_name("fedge")
    artefacts = (file.resolve().parent / "mlartifacts").as_uri()
    experiment = known.experiment_id if known else client.create_experiment("fedge", artefacts)
    tag = "fedge.plan"
    for run in client.search_runs([experiment], f"tags.`{tag}` = '{plan.digest}'"):
        if run.info.status == "FINISHED":
            raise ArtefactError(
                f"{file} has the run {plan.name} already", "remove it there, or name another file"
            )
        client.delete_run(run.info.run_id)  # of a process that was killed
    made = client.create_run(
        experiment, run_name=plan.name, tags={tag: plan.digest}, start_time=_ms(events[0])
    )
    number = made.info.run_id
    settings = [
        Param(key, value[:LONGEST_SETTING]) for key, value in settings_of(plan).items() if value
    ]
    client.log_batch(number, params=settings, tags=[RunTag("fedge.base", plan.base.fingerprint)])
    points = [Metric(tag, value, _ms(e), e.turn) for tag, e, value in _points(events)]
    for at in range(0, len(points), SEVERAL):
        client.log_batch(number, metrics=points[at : at + SEVERAL])
    client.set_terminated(number, end_time=_ms(events[-1]))
    return file


def _ms(event: Event) -> int:
    return round(1000 * event.time)
