"""``fedge client trainer``: run a site's trainer in the foreground, look at it, or end it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def trainer(
    path: Annotated[Path, typer.Argument(help="its socket, in a folder of this user alone")],
    idle: Annotated[float, typer.Option("--idle", min=0.0, help="end after so many seconds")] = 0.0,
    status: Annotated[bool, typer.Option("--status", help="say who serves the socket")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="end the one that serves it")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable output")] = False,
) -> None:
    """Keep the base, its program and the rows in memory and train for the messages of this site."""
    path = path.absolute()
    if status or stop:
        from client import trainer_link

        found = trainer_link.stop(path) if stop else trainer_link.state(path)
        if as_json:
            typer.echo(json.dumps({"serving": found.model_dump() if found else None}))
        elif found is None:
            typer.echo("nobody serves it")
        else:
            what = "stopped" if stop else "training" if found.busy else "waiting"
            typer.echo(f"process {found.pid}: {what}, {found.served} requests served")
        return
    import logging

    from client.trainer import Trainer

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    Trainer(path, idle=idle).serve()
