"""``fedge metrics``: a run's curves as lines, or as files for TensorBoard and MLflow. (docs/adr/0039)"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.errors import ArtefactError
from protocol.plan import Plan, plan_from_text
from storage.regular import read_regular_text

if TYPE_CHECKING:
    from server.history import Event


def metrics(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", help="folder of event files, one folder a run")
    ] = None,
    mlflow: Annotated[
        Path | None, typer.Option("--mlflow", help="SQLite file of MLflow; may have other runs")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document")] = False,
) -> None:
    """Print what is known of every round, one JSON object a line; or write it for a tracker.

    Nothing is sent anywhere. Of clients there are sums over all of them, under differential privacy none.
    """
    from fedge.trackers import write_mlflow, write_tensorboard

    plan, events = read_run(run)
    written = []
    if tensorboard is not None:
        written.append(str(write_tensorboard(tensorboard, plan, events)))
    if mlflow is not None:
        written.append(str(write_mlflow(mlflow, plan, events)))
    if as_json:
        lines = [event.model_dump() for event in events]
        typer.echo(json.dumps({"events": lines, "written": written}))
    elif written:
        typer.echo("\n".join(written))
    else:
        for event in events:
            typer.echo(event.model_dump_json())


def read_run(run: Path) -> tuple[Plan, Sequence[Event]]:
    """The plan of a run and its events. Raises ArtefactError for a folder that is none."""
    from server.history import HISTORY, read_history

    path = run / "plan.json"
    try:
        plan = plan_from_text(read_regular_text(path), source=str(path))
    except (OSError, UnicodeDecodeError):
        raise ArtefactError(f"{path} cannot be read", "name a run folder") from None
    events = read_history(run)
    if not events:
        raise ArtefactError(
            f"{run / HISTORY} has no events",
            "wait for the first round; of a run of an earlier version: resume it, which writes them",
        )
    return plan, events


def settings_of(plan: Plan) -> dict[str, str]:
    """The plan's keys, flat: what trackers call parameters."""

    def flat(table: dict[str, Any], above: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for key, value in table.items():
            if isinstance(value, dict):
                found |= flat(value, f"{above}{key}.")
            elif value is not None:
                found[above + key] = value if isinstance(value, str) else json.dumps(value)
        return found

    return flat(plan.model_dump(mode="json"), "")
