"""``fedge log``: what a run's log needs between rounds, and after them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import ArtefactError, printable
from protocol.plan import plan_from_text
from storage.regular import read_regular, read_settings_text

if TYPE_CHECKING:
    from protocol.plan import Plan
    from protocol.transparency.withdrawal import Effect
    from server.log import RunLog
    from server.store import RunStore

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Look after a run's log: expired vectors, submissions.",
)
Run = Annotated[Path, typer.Argument(help="a run folder")]
LogKey = Annotated[
    Path | None, typer.Option("--log-key", help="the log's secret key, when the run has none")
]
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]


@app.command()
def tend(
    run: Run,
    log_key: LogKey = None,
    as_json: Json = False,
) -> None:
    """Log submissions, and what a killed coordinator left; delete vectors that were kept long enough."""
    from server.tending import tend as tend_log

    with _opened(run, log_key) as (log, store, plan):
        done = tend_log(log, store, plan, {}, now=time.time())
        size = log.size
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
        typer.echo(f"submissions logged: {', '.join(map(printable, done.taken.logged))}")
    if done.taken.refused:
        typer.echo(
            f"submissions refused, see log/refused: {', '.join(map(printable, done.taken.refused))}"
        )
    if done.retired:
        typer.echo(f"masked vectors deleted of rounds {', '.join(map(str, done.retired))}")


@app.command()
def withdraw(
    run: Run,
    request: Annotated[Path, typer.Argument(help="a site's, from `fedge client withdraw`")],
    log_key: LogKey = None,
    as_json: Json = False,
) -> None:
    """Log that a site withdraws, and what its updates are in; it is not asked again.

    While a coordinator is at the run, the request waits in its inbox until the round is over.
    """
    from protocol.transparency.submissions import parse_request
    from server.inbox import leave_request, request_leaf
    from server.store import RunInUseError
    from server.tending import tend as tend_log
    from server.withdrawing import effect

    data = _request(request)
    client = parse_request(data).client
    try:
        with _opened(run, log_key) as (log, store, plan):
            tend_log(log, store, plan, {}, now=time.time())
            leaf = request_leaf(data, log, store)
            touched = effect(log, client)
            index = log.append([leaf])
    except RunInUseError:
        path = leave_request(data, run)
        waiting = f"{path}: the coordinator logs it after this round, or log/refused says why not"
        typer.echo(json.dumps({"leaf": None, "waiting": str(path)}) if as_json else waiting)
        return
    _print_withdrawn(run, client, index, touched, as_json)


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


@contextmanager
def _opened(run: Path, log_key: Path | None) -> Iterator[tuple[RunLog, RunStore, Plan]]:
    """A run's log and folder, held. Raises ArtefactError for what is no run, RunInUseError."""
    from server.log import open_log, read_log_key
    from server.store import PLAN, RunStore

    path = run / PLAN
    if not path.is_file() or not (run / "log").is_dir():
        raise ArtefactError(f"{run} is not a run with a log", "name a run folder")
    if log_key is not None and not log_key.is_file():
        raise ArtefactError(f"{log_key} is not there", "name the file with the log's secret key")
    plan = plan_from_text(read_settings_text(path), source=str(path))
    store = RunStore(run)
    try:
        yield open_log(store, plan, read_log_key(log_key) if log_key else None), store, plan
    finally:
        store.close()


def _print_withdrawn(run: Path, client: str, index: int, effect: Effect, as_json: bool) -> None:
    before = effect.before
    assert before is not None  # a log that has a leaf has round 0
    if as_json:
        body = {"leaf": index, "first": effect.first, "before": before.model_dump()}
        typer.echo(json.dumps(body))
        return
    typer.echo(f"leaf {index}: {client} has withdrawn and is not asked again")
    if effect.first is None:
        typer.echo("no adapter holds an update of it")
        return
    typer.echo(
        f"rounds whose sums hold an update of it: {len(effect.rounds)}; adapters that descend from these: "
        f"{len(effect.adapters)}, from round {effect.first} on; releases: {len(effect.releases)}\n"
        f"all of them: fedge audit lineage {run} --site {client}\n"
        f"the last adapter before: round {before.round}"
    )


def _request(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise ArtefactError(
            f"{path} cannot be read: {error.strerror}", "name a site's request"
        ) from None
