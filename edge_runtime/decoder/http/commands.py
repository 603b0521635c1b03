"""``fedge edge serve-text``: answer OpenAI's clients with a base and its adapters."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_runtime.decoder.commands import Json, Threads, say_blends
from protocol.errors import DataError, printable

if TYPE_CHECKING:
    from edge_runtime.decoder.http.service import Texts, TextService
    from edge_runtime.settings import Device

Base = Annotated[Path, typer.Option("--base", help="folder of a base that writes text")]
LOCAL = ("127.0.0.1", "localhost")
QUEUE, AT_ONCE = 16, 8  # texts that may wait, and that are written together, unless asked otherwise
MOST_AT_ONCE = 16
MOST_QUEUE = 32  # with those that are written and some for other questions, of 64 connections


def serve_text(
    base: Base,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="NAME=FILE",
            help="an .onnx_adapter, a release or a blend; may be given again",
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="address to listen at")] = LOCAL[0],
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="0: a free one")] = 8765,
    queue: Annotated[
        int, typer.Option("--queue", min=0, max=MOST_QUEUE, help="texts that may wait")
    ] = QUEUE,
    at_once: Annotated[
        int,
        typer.Option("--at-once", min=1, max=MOST_AT_ONCE, help="texts that are written together"),
    ] = AT_ONCE,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Write texts over HTTP for OpenAI's clients, until Ctrl-C.

    POST /v1/chat/completions and /v1/completions, GET /v1/models: the base and each adapter are a model.
    Texts take turns, a token each, in one run where that is less work, whatever their models. SIGHUP
    loads the adapters' files again; texts that have begun end with the adapter that they began with.
    """
    files = _files(adapter or [])
    from edge_runtime.start import start_lean

    start_lean()
    from edge_runtime.backends.writing import open_writing
    from edge_runtime.decoder.http.service import TextService

    backend = open_writing(base, threads=threads)
    service = TextService(backend.writer.base, files, queue=queue, at_once=at_once)
    say_blends(files.values())
    if host not in LOCAL:
        typer.echo("warning: whoever reaches this address may ask; there are no keys", err=True)
    try:
        with _reloading(service):
            _listen(service, host, port, as_json=as_json)
    finally:
        service.end()


def serve_device(device: Device, port: int, *, as_json: bool) -> None:
    """``fedge edge serve`` of a device whose base writes text: its release in use is the one model."""
    from edge_runtime.backends.writing import open_writing
    from edge_runtime.decoder.http.followed import DeviceTexts

    backend = open_writing(device.base, threads=device.threads)
    service = DeviceTexts(device, backend, clock=time.monotonic, queue=QUEUE)
    with service.following():
        _listen(service, LOCAL[0], port, as_json=as_json)


def _listen(service: Texts, host: str, port: int, *, as_json: bool) -> None:
    """Write texts until the process is told to stop. Raises MachineError."""
    from edge_runtime.decoder.http.app import TextApp
    from edge_runtime.http_server import run, settings_of
    from edge_runtime.huge_pages import gather
    from edge_runtime.start import end_start

    gather()

    def say(url: str) -> None:
        end_start()
        models = list(service.names)
        shown = f"listening on {url}; models: {', '.join(models) or 'none yet'}"
        typer.echo(json.dumps({"url": url, "models": models}) if as_json else shown)
        sys.stdout.flush()

    app = TextApp(service, local=host in LOCAL)
    run(settings_of(app), port, host=host, listening_at=say)


def _files(adapters: list[str]) -> dict[str, Path]:
    """Files by name. Raises DataError."""
    files: dict[str, Path] = {}
    for text in adapters:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise DataError(
                f"--adapter {text[:80]}: this is no NAME=FILE", "give --adapter tidy=a.onnx_adapter"
            )
        if name in files:
            raise DataError(f"--adapter {name[:80]} is given twice", "give each name one file")
        files[name] = Path(path)
    return files


@contextmanager
def _reloading(service: TextService) -> Iterator[None]:
    """SIGHUP loads adapters again, where there is such a signal."""
    hang_up = getattr(signal, "SIGHUP", None)
    if hang_up is None:
        yield
        return

    def reload() -> None:
        for name, fault in service.reload().items():
            outcome = f"stays as it was: {fault}" if fault else "is loaded again"
            typer.echo(printable(f"adapter {name} {outcome}"), err=True)

    before = signal.signal(hang_up, lambda *_: threading.Thread(target=reload, daemon=True).start())
    try:
        yield
    finally:
        signal.signal(hang_up, before)
