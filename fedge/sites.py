"""``fedge client enrol|start|stop|status``: a site's machine, beside the commands of ``client.commands``."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.commands import app
from protocol.errors import MachineError
from protocol.section import MOST_MEMORY, MOST_THREADS
from storage.regular import read_regular

if TYPE_CHECKING:
    from operations.site import Site

__all__ = ["app"]

Folder = Annotated[Path, typer.Argument(help="the site's folder")]
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]


@app.command()
def enrol(
    folder: Annotated[Path, typer.Argument(help="a new folder")],
    name: Annotated[str, typer.Option("--name", help="this site's name, for everybody to see")],
    invitation: Annotated[Path, typer.Option("--invitation", help="the operator's file")],
    data: Annotated[Path | None, typer.Option("--data", help="rows that stay here")] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="what this site agrees to")] = None,
    base: Annotated[str, typer.Option("--base", help="folder of the model, or fingerprint")] = "",
    mirrors: Annotated[
        list[str] | None, typer.Option("--from", help="folder or URL to fetch the base from")
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", min=0, max=MOST_THREADS, help="0: as many as it has cores")
    ] = 0,
    expand_mib: Annotated[
        int,
        typer.Option(
            "--expand-mib",
            min=0,
            max=MOST_MEMORY,
            help="memory for the model's weights as floats, with which steps of few rows take half the time",
        ),
    ] = 0,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="on loopback; a free one")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make this site's keys, which never leave it, and the request that goes to the operator."""
    from client.settings import FINGERPRINT
    from operations.folders import free_port
    from operations.site import REQUEST, Work, make_site, read_invitation
    from protocol.enrolment import verify_request

    paths = [str(path.resolve()) if path else "" for path in (data, plan)]
    work = Work(
        data=paths[0],
        plan=paths[1],
        base=base if not base or FINGERPRINT.fullmatch(base) else str(Path(base).resolve()),
        mirrors=[_mirror(mirror) for mirror in mirrors or []],
        threads=threads,
        expand_mib=expand_mib,
    )
    port = port or free_port()
    site = make_site(folder, name, read_invitation(invitation), work=work, port=port)
    request = site.folder / REQUEST
    identity = verify_request(read_regular(request), source=str(request)).identity.hex()
    if as_json:
        document = {"folder": site.folder, "name": name, "request": request, "identity": identity}
        typer.echo(json.dumps(document, default=str))
    else:
        typer.echo(f"made {site.folder}, identity {identity[:16]}…")
        typer.echo(f"send {request} to the operator, who admits it and reads you that identity")


def _mirror(place: str) -> str:
    """As a site's settings name it, wherever it was named. Raises what is none."""
    from base_model.mirrors import mirror_at

    mirror_at(place)
    return place if "://" in place else str(Path(place).resolve())


@app.command()
def start(
    folder: Folder,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="stay in this terminal, as a service manager wants")
    ] = False,
) -> None:
    """Start its processes and keep them running."""
    from operations.proxies import verify_proxies
    from operations.service import start_in_background, verify_port_free
    from operations.site import Site
    from operations.supervisor import LOCK, LOG, processes_of
    from storage.locks import is_held

    verify_proxies(os.environ)
    site = Site.open(folder)
    site.verify_ready()
    _fetch_base(site)
    site.verify_fits()
    if foreground:
        _supervise(site)
        return
    if not is_held(site.state / LOCK):
        verify_port_free("127.0.0.1", site.settings.port)
    start_in_background(
        ["client", "start", str(site.folder), "--foreground"],
        site.state,
        ready=lambda: bool(processes_of(site.state)),
        log=site.state / LOG,
    )
    typer.echo(f"started {site.settings.name}; it asks {site.invitation.address} for work")


@app.command()
def agree(
    folder: Folder,
    plan: Annotated[Path, typer.Argument(help="what this site agrees to from now on")],
    as_json: Json = False,
) -> None:
    """Take part in the runs of another plan, and of no other, from the next start on."""
    from operations.site import Site
    from operations.supervisor import LOCK
    from storage.locks import is_held

    site = Site.open(folder)
    agreed = site.agree(plan)
    running = is_held(site.state / LOCK)
    if as_json:
        agreement = {"name": site.settings.name, "plan": agreed.name, "digest": agreed.digest}
        agreement |= {"goes_on_from": agreed.start.origin} if agreed.start else {}
        typer.echo(json.dumps(agreement | {"restart": running}))
        return
    typer.echo(f"{site.settings.name} agrees to plan {agreed.name}, {agreed.digest}")
    if start := agreed.start:
        typer.echo(
            f"it goes on from round {start.round} of {start.origin}. That the adapter is that round's is the "
            "coordinator's word, and of one beside it a sum over one client less would tell of that client: "
            "trust a release only once `fedge audit verify RUN --before EARLIER-RUN` has said ok"
        )
    if running:
        typer.echo("it runs, with the plan it had: stop it and start it, when no round needs it")


@app.command()
def stop(folder: Folder) -> None:
    """Stop its processes."""
    from operations.service import stop as end
    from operations.site import Site

    site = Site.open(folder)
    running = end(site.state)
    typer.echo("stopped" if running else "it was not running")


@app.command()
def status(folder: Folder, as_json: Json = False) -> None:
    """Whether its processes are up, and what the coordinator says. Exit code 8 when it cannot take part."""
    from operations.contact import last_contact
    from operations.logs import last_refusal
    from operations.site import Site
    from operations.supervisor import LOCK, LOG, processes_of
    from storage.locks import is_held

    site = Site.open(folder)
    refusal = last_refusal(site.state / LOG)
    running, processes = is_held(site.state / LOCK), processes_of(site.state)
    contact = last_contact(site)
    healthy = (
        running and all(p.pid for p in processes) and contact is not None and not contact.fault
    )
    if as_json:
        body = {
            "name": site.settings.name,
            "running": running,
            "processes": [asdict(process) for process in processes],
            "contact": asdict(contact) if contact else None,
            "refusal": {"at": refusal[0], "why": refusal[1]} if refusal else None,
        }
        typer.echo(json.dumps(body))
    else:
        typer.echo(f"{site.settings.name}: {'runs' if running else 'does not run'}")
        for process in processes:
            state = f"process {process.pid}" if process.pid else "waits to be started again"
            typer.echo(f"  {process.name}: {state}, {process.restarts} restarts")
        if contact:
            enrolment = contact.fault or f"enrolled, roster version {contact.roster_version}"
            typer.echo(f"  {site.invitation.address} at {contact.at}: {enrolment}")
        if refusal:
            typer.echo(f"  it last refused a request, or failed, at {refusal[0]}: {refusal[1]}")
    if not healthy:
        raise typer.Exit(MachineError.exit_code)


def _fetch_base(site: Site) -> None:
    """Before anything runs: a coordinator does not wait for a base."""
    if not site.fetches:
        return
    from base_model.commands import fetch_bar
    from base_model.fetch import fetch_base

    work = site.settings.work
    with fetch_bar() as tell:
        fetch_base(work.base, mirrors=work.mirrors, cache=site.base.parent, progress=tell)


def _supervise(site: Site) -> None:
    from operations.contact import keep_in_contact
    from operations.logs import JsonLog
    from operations.supervisor import LOG, Supervisor

    def now() -> datetime:
        return datetime.now(UTC)

    site.renew_certificate()
    log = JsonLog(site.state / LOG, now)
    chores = [keep_in_contact(site, now)]
    Supervisor(site.state, site.work, site.components(), log, chores).run()
