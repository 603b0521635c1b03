"""``fedge audit witness``: cosign logs that have only grown, asked over HTTP or by looking at them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.addresses import endpoint_fault
from protocol.errors import ArtefactError, FedgeError, MachineError
from protocol.transparency.note import NAME
from storage.whole import PRIVATE, write_whole

if TYPE_CHECKING:
    from audit.witness import Witness


def witness(
    source: Annotated[
        str, typer.Argument(help="a run's folder or address to follow, instead of --listen")
    ] = "",
    identity: Annotated[
        Path, typer.Option("--identity", help="key file; --new makes it where there is none")
    ] = Path("witness.key"),
    state: Annotated[
        Path,
        typer.Option("--state", help="folder with what was cosigned; never restore an old copy"),
    ] = Path("witness"),
    logs: Annotated[
        list[str] | None, typer.Option("--log", help="a log's verifier key; may be given again")
    ] = None,
    new: Annotated[str, typer.Option("--new", help="begin a witness of this name")] = "",
    listen: Annotated[
        str, typer.Option("--listen", help="HOST:PORT; port 0 takes a free one")
    ] = "",
    once: Annotated[bool, typer.Option("--once", help="look at SOURCE once")] = False,
    every: Annotated[float, typer.Option("--every", min=0.1, help="seconds between looks")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable output")] = False,
) -> None:
    """Cosign logs that have only grown. Without SOURCE and --listen it shows its verifier key."""
    from audit.witness import begin

    if source and listen:
        raise typer.BadParameter("give a source or --listen, not both")
    if listen and (fault := endpoint_fault(listen, anywhere=True, free_port=True)):
        raise typer.BadParameter(f"--listen {listen[:80]!r} {fault}")
    if new and not (NAME.fullmatch(new) and new.isprintable()):
        raise typer.BadParameter(f"--new {new[:80]!r} is no name: no blank and no `+` in it")
    if (source or listen) and not logs:
        raise typer.BadParameter("pin the verifier key of a log: --log")
    if new:
        begin(state, new, _read_key(identity, make=True))
    with _opened(identity, state, logs or []) as own:
        _say(as_json, f"witness {own.key.encode()}", witness=own.key.encode())
        if listen:
            _serve(own, listen, as_json)
        elif source:
            _follow(own, source, None if once else every, as_json)


@contextmanager
def _opened(identity: Path, state: Path, logs: list[str]) -> Iterator[Witness]:
    from audit.witness import Witness
    from protocol.transparency.note import KeyType, parse_key

    pinned = [parse_key(log) for log in logs]
    if any(log.type is not KeyType.ED25519 for log in pinned):
        raise typer.BadParameter("--log takes the key in a run's log/key")
    own = Witness(state, _read_key(identity, make=False), pinned, lambda: int(time.time()))
    try:
        yield own
    finally:
        own.close()


def _serve(own: Witness, listen: str, as_json: bool) -> None:
    from audit.witness_server import WitnessServer

    host, _, port = listen.rpartition(":")
    try:
        server = WitnessServer(
            (host.strip("[]"), int(port)), own, lambda line: typer.echo(line, err=True)
        )
    except OSError as error:
        raise MachineError(f"{listen}: {error.strerror}", "name another address") from None
    with server:
        name = f"[{server.server_name}]" if ":" in server.server_name else server.server_name
        url = f"http://{name}:{server.server_port}"
        _say(as_json, f"listening at {url}", url=url)
        server.serve_forever()


def _follow(own: Witness, source: str, every: float | None, as_json: bool) -> None:
    """Once, where a fault ends the program; or for ever, where it is reported and looked for again."""
    from audit.sources import open_source

    published, first = open_source(source), True
    while True:
        try:
            note, changed = own.follow(lambda name: published.read(f"log/{name}"))
            if first or changed:
                _say(as_json, note, checkpoint=note)
            first = False
        except FedgeError as error:
            if every is None:
                raise
            typer.echo(str(error), err=True)
        if every is None:
            return
        time.sleep(every)


def _read_key(path: Path, *, make: bool) -> Ed25519PrivateKey:
    """The key file of ``fedge client identity``'s form; its digits are never shown."""
    try:
        if make and not path.exists():
            secret = Ed25519PrivateKey.generate().private_bytes_raw()
            write_whole(path, f"{secret.hex()}\n".encode(), mode=PRIVATE, new=True)
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text("ascii").strip()))
    except OSError as error:
        raise MachineError(
            f"{path} cannot be used: {error.strerror}", "name the key file; --new NAME makes one"
        ) from None
    except ValueError:
        raise ArtefactError(f"{path} holds no key", "it holds 64 hex digits") from None


def _say(as_json: bool, text: str, **fields: str) -> None:
    typer.echo(json.dumps(fields) if as_json else text.rstrip("\n"))
