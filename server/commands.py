"""``fedge log``: what a run's log needs between rounds, and after them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from protocol.errors import ArtefactError
from protocol.plan import plan_from_text
from storage.regular import read_settings_text

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Look after a run's log: expired vectors, submissions.",
)
Run = Annotated[Path, typer.Argument(help="a run folder")]
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]


@app.command()
def tend(
    run: Run,
    log_key: Annotated[
        Path | None, typer.Option("--log-key", help="the log's secret key, when the run has none")
    ] = None,
    as_json: Json = False,
) -> None:
    """Log submissions, and what a killed coordinator left; delete vectors that were kept long enough."""
    from server.log import open_log, read_log_key
    from server.store import PLAN, RunStore
    from server.tending import tend as tend_log

    path = run / PLAN
    if not path.is_file() or not (run / "log").is_dir():
        raise ArtefactError(f"{run} is not a run with a log", "name a run folder")
    if log_key is not None and not log_key.is_file():
        raise ArtefactError(f"{log_key} is not there", "name the file with the log's secret key")
    plan = plan_from_text(read_settings_text(path), source=str(path))
    store = RunStore(run)
    try:
        log = open_log(store, plan, read_log_key(log_key) if log_key else None)
        done = tend_log(log, store, plan, {}, now=time.time())
        size = log.size
    finally:
        store.close()
    if as_json:
        content = {
            "size": size,
            "leaves": done.leaves,
            "logged": list(done.taken.logged),
            "refused": list(done.taken.refused),
            "retired": list(done.retired),
        }
        typer.echo(json.dumps(content))
        return
    typer.echo(f"{run}: {size} leaves")
    if done.leaves:
        typer.echo(f"leaves that a killed coordinator left out: {done.leaves}")
    if done.taken.logged:
        typer.echo(f"submissions logged: {', '.join(done.taken.logged)}")
    if done.taken.refused:
        typer.echo(f"submissions refused, see log/refused: {', '.join(done.taken.refused)}")
    if done.retired:
        typer.echo(f"masked vectors deleted of rounds {', '.join(map(str, done.retired))}")


@app.command()
def key(run: Run) -> None:
    """Print the log's verifier key: what auditors, witnesses and devices pin."""
    path = run / "log" / "key"
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise ArtefactError(f"{path} cannot be read", "name a run folder") from None
    typer.echo(text.strip())


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="the log's name, unique: log.example/run-1")],
    out: Annotated[Path, typer.Option("--out", help="file for the secret key; must not exist")],
    as_json: Json = False,
) -> None:
    """Make a key for a run's log beforehand: a plan with witnesses names it (`audit.log`)."""
    from protocol.transparency.note import NAME, KeyType, VerifierKey
    from server.log import read_log_key

    if not NAME.fullmatch(name):
        raise ArtefactError(f"{name!r} is no name", "no spaces and no plus, at most 128 characters")
    if out.exists():
        raise ArtefactError(f"{out} exists already", "name another file")
    public = read_log_key(out).public_key().public_bytes_raw()
    verifier = VerifierKey(name=name, type=KeyType.ED25519, public=public).encode()
    typer.echo(json.dumps({"key": verifier, "secret": str(out)}) if as_json else verifier)
