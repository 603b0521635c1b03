"""``fedge edge``: a device's own commands, and the one that needs more than a device's runtime: training."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_runtime.commands import app
from edge_runtime.device_commands import DeviceFile, Json
from protocol.errors import MachineError

if TYPE_CHECKING:
    from protocol.plan_sections import Local

BATCH = 16  # rows of a step: a device has few
NEEDED = ("onnx", "safetensors", "google")  # packages beside those that a device answers with


Data = Annotated[Path, typer.Option("--data", help="rows that stay here: JSONL, CSV or Parquet")]
Text = Annotated[
    str | None,
    typer.Option("--text", help="column with the text, a page's words, or a file's path"),
]
Pair = Annotated[
    str, typer.Option("--pair-column", help="of pairs: the second text's; `text_pair`")
]
Boxes = Annotated[str, typer.Option("--boxes", help="of documents: the column with boxes; `boxes`")]
Column = Annotated[
    str, typer.Option("--label", help="column with the label, or number; `label` or `target`")
]
Epochs = Annotated[int, typer.Option("--epochs", min=1, max=10_000, help="passes over the rows")]
Steps = Annotated[int, typer.Option("--steps", min=0, help="most steps; 0: no limit")]
Rate = Annotated[float, typer.Option("--rate", min=1e-12, help="learning rate")]
Holdout = Annotated[
    float | None,
    typer.Option(
        "--holdout", min=0, max=0.9, help="share to measure on; without it 0.2 of 20 rows or more"
    ),
]


@app.command()
def train(
    file: DeviceFile,
    data: Data,
    text: Text = None,
    pair: Pair = "",
    boxes: Boxes = "",
    column: Column = "",
    epochs: Epochs = 5,
    steps: Steps = 0,
    rate: Rate = 5e-4,
    holdout: Holdout = None,
    as_json: Json = False,
) -> None:
    """Adapt the release in use to rows of this device. Neither rows nor adapter leave it.

    The personal adapter answers in the release's place, also in a running `serve`, until `rollback` or a
    newer release. Training again begins at the release again: give all rows.
    """
    from edge_runtime.settings import read_device

    if holdout is not None and math.isnan(holdout):
        raise typer.BadParameter("--holdout is a share")
    device = read_device(file)
    _verify_installed()
    from fedge.personal import Request, adapt
    from simulations.bars import watched

    local = _local(epochs=epochs, max_steps=steps, learning_rate=rate, head_learning_rate=rate)
    request = Request(
        data=data, text=text, pair=pair, boxes=boxes, column=column, local=local, holdout=holdout
    )
    with watched(quiet=as_json) as progress:
        outcome = adapt(
            device,
            request,
            datetime.now(UTC),
            lambda done, total: progress.update("training", done, total),
        )
    _say(outcome.form(), as_json)


def _verify_installed() -> None:
    """What training needs beside a device's runtime is there. Raises MachineError."""
    for package in NEEDED:
        if find_spec(package) is None:
            raise MachineError(
                f"training on a device needs the package `{package}`, which is not installed",
                "pip install -c constraints.txt '.[edge-train]'",
            )


def _local(**settings: float) -> Local:
    """A plan's settings of training, from the options. Raises PlanError."""
    from protocol.plan import validated
    from protocol.plan_sections import Local

    return validated(Local, {"batch_size": BATCH, **settings}, source="the options of `edge train`")


def _say(outcome: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(outcome))
        return
    typer.echo(
        f"personal adapter from release {outcome['release']} in use: {outcome['rows']} rows, "
        f"{outcome['steps']} steps, {outcome['seconds']:.1f} s, loss {outcome['loss']:.3f} in the last epoch"
    )
    if outcome["held_out"]:
        typer.echo(
            f"on {outcome['held_out']} rows that were held out: {outcome['quality']} "
            f"{outcome['before']:.3f} before, {outcome['after']:.3f} after"
        )
    else:
        typer.echo(
            "no row was held out, so nobody knows whether it is better: --holdout, or more rows"
        )
    typer.echo("it is nobody's release and stays on this device; `fedge edge rollback` removes it")
