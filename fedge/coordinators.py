"""``fedge coordinator``: a consortium's coordinator, from its keys to its processes."""

from __future__ import annotations

import json
import os
import ssl
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import MachineError
from storage.regular import read_regular

if TYPE_CHECKING:
    from operations.coordinator import Coordinator

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Run the machine where rounds are coordinated."
)
Folder = Annotated[Path, typer.Argument(help="the coordinator's folder")]
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]
Key = Annotated[
    Path | None, typer.Option("--key", help="the operator's key, when it is kept elsewhere")
]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="a new folder")],
    hosts: Annotated[
        list[str], typer.Option("--host", help="a name or address sites use; the first is told")
    ],
    name: Annotated[str, typer.Option("--name", help="the consortium's")] = "consortium",
    address: Annotated[str, typer.Option("--address", help="to listen at")] = "0.0.0.0",  # noqa: S104 - sites are elsewhere
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="for sites")] = 9440,
    private_port: Annotated[int, typer.Option("--private-port", min=1, max=65535)] = 9441,
    metrics_port: Annotated[int, typer.Option("--metrics-port", min=1, max=65535)] = 9442,
    as_json: Json = False,
) -> None:
    """Make a certificate authority, a certificate, the operator's key and an invitation for sites."""
    from operations.coordinator import INVITATION, make_coordinator

    coordinator = make_coordinator(
        folder,
        hosts,
        name=name,
        ports=(port, private_port, metrics_port),
        address=address,
        now=datetime.now(UTC),
    )
    invitation = str(coordinator.folder / INVITATION)
    if as_json:
        typer.echo(json.dumps({"folder": str(coordinator.folder), "invitation": invitation}))
    else:
        typer.echo(
            f"made {coordinator.folder}; give {invitation} to every site, over a way they trust"
        )


@app.command()
def admit(
    folder: Folder,
    request: Annotated[Path, typer.Argument(help="a site's request.json")],
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Take a site into the signed roster; a coordinator that runs lets it in within a second."""
    from operations.coordinator import Coordinator
    from protocol.enrolment import MAX_BYTES

    try:
        data = read_regular(request, most=MAX_BYTES)  # a stranger's file
    except OSError as error:
        raise MachineError(
            f"{request}: cannot be read: {error.strerror}", "name the site's request.json"
        ) from None
    opened = Coordinator.open(folder)
    site = opened.admit(data, source=str(request), key=key)
    text = f"admitted {site.name}, identity {site.identity.hex()[:16]}…"
    _say_roster(opened, text, as_json, name=site.name, identity=site.identity.hex())


@app.command()
def remove(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="the site's name")],
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Take a site out of the signed roster; it is not let in any more."""
    from operations.coordinator import Coordinator

    opened = Coordinator.open(folder)
    opened.remove(name, key=key)
    _say_roster(opened, f"removed {name}", as_json)


@app.command()
def start(
    folder: Folder,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="stay in this terminal, as a service manager wants")
    ] = False,
) -> None:
    """Start its processes and keep them running."""
    from operations.coordinator import Coordinator
    from operations.proxies import verify_proxies
    from operations.service import start_in_background, verify_port_free
    from operations.supervisor import LOG

    verify_proxies(os.environ)
    opened = Coordinator.open(folder)
    if foreground:
        _supervise(opened)
        return
    public, private = opened.settings.public, opened.settings.private
    arguments = ["coordinator", "start", str(opened.folder), "--foreground"]
    if not _runs(opened):
        verify_port_free(public.address, public.port)
        verify_port_free("127.0.0.1", private.port)
        verify_port_free("127.0.0.1", private.metrics_port)
    start_in_background(
        arguments, opened.state, ready=lambda: _healthy(opened), log=opened.state / LOG
    )
    typer.echo(f"started; sites reach it at {opened.address}")
    if told := opened.told_elsewhere():
        typer.echo(
            f"note: invitation.json tells sites {told}; unless something there forwards to "
            f"{opened.address}, correct `address` in it and in every site's coordinator.json"
        )


@app.command()
def stop(folder: Folder) -> None:
    """Stop its processes. Runs stay as they are and go on with `fedge run … --resume`."""
    from operations.coordinator import Coordinator
    from operations.service import stop as end

    typer.echo("stopped" if end(Coordinator.open(folder).state) else "it was not running")


@app.command()
def status(folder: Folder, as_json: Json = False) -> None:
    """Whether its processes are up. Exit code 8 when they are not."""
    from operations.coordinator import Coordinator

    opened = Coordinator.open(folder)
    from fedge.statuses import show
    from operations.overview import look

    overview = look(opened)
    show(overview, as_json)
    if not overview.healthy:
        raise typer.Exit(MachineError.exit_code)


def _runs(opened: Coordinator) -> bool:
    from operations.supervisor import LOCK
    from storage.locks import is_held

    return is_held(opened.state / LOCK)


def _supervise(opened: Coordinator) -> None:
    from operations.logs import JsonLog
    from operations.metrics import serve_metrics
    from operations.overview import look
    from operations.supervisor import LOG, Supervisor

    def now() -> datetime:
        return datetime.now(UTC)

    opened.renew_certificate(now())
    log = JsonLog(opened.state / LOG, now)
    chores = [opened.keep_certificate(now)]
    supervisor = Supervisor(opened.state, opened.work, opened.components(), log, chores)
    metrics = serve_metrics(opened.settings.private.metrics_port, lambda: look(opened))
    try:
        supervisor.run()
    finally:
        metrics.shutdown()


def _healthy(opened: Coordinator) -> bool:
    """The SuperLink answers on its private port."""
    context = ssl.create_default_context(cadata=opened.authority.decode("ascii"))
    url = f"https://127.0.0.1:{opened.settings.private.port}/health"
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _say_roster(opened: Coordinator, text: str, as_json: bool, **facts: str) -> None:
    roster = opened.roster()
    names = [site.name for site in roster.sites]
    if as_json:
        typer.echo(json.dumps({"version": roster.version, "sites": names, **facts}))
    else:
        typer.echo(f"{text}; roster version {roster.version}, {len(names)} sites")
