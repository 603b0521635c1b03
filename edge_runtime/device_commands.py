"""``fedge edge update|activate|rollback|status|serve``: a device that looks after its releases."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.errors import printable
from protocol.section import MOST_THREADS

if TYPE_CHECKING:
    from edge_runtime.http_server import Answering
    from edge_runtime.settings import Device

DeviceFile = Annotated[Path, typer.Argument(metavar="DEVICE.toml", help="the device's settings")]
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]
Report = Annotated[
    Path | None, typer.Option("--report", help="also write the device's report to this file")
]

Top = Annotated[int, typer.Option("--top", min=1, help="so many of the likeliest labels")]
RejectBelow = Annotated[
    float, typer.Option("--reject-below", min=0, max=1, help="no label less likely than this")
]
Rank = Annotated[
    int | None,
    typer.Option(
        "--rank", min=1, help="with --adapter: its first ranks alone, of low-rank factors"
    ),
]

Settings = Annotated[
    Path | None, typer.Argument(metavar="[DEVICE.toml]", help="the device's settings")
]
Base = Annotated[
    Path | None, typer.Option("--base", help="folder of a base, instead of DEVICE.toml")
]
Adapter = Annotated[
    Path | None, typer.Option("--adapter", help="with --base: folder of a released adapter")
]
Trust = Annotated[Path | None, typer.Option("--trust", help="with --base: the log's policy")]
Threads = Annotated[
    int, typer.Option("--threads", min=0, max=MOST_THREADS, help="with --base; 0: ORT's")
]
Port = Annotated[int, typer.Option("--port", min=0, max=65_535, help="0: a free one")]


def update(
    file: DeviceFile,
    only_download: Annotated[
        bool, typer.Option("--only-download", help="leave the switch to `activate`")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="also what failed, or was rolled back, here")
    ] = False,
    report: Report = None,
    as_json: Json = False,
) -> None:
    """Take what the repository offers this device: verify, probe, switch. Run it from a timer."""
    device = _device(file, report)
    from edge_runtime import agent

    agent.update(device, _now(), activate=not only_download, retry=retry)
    _say(agent.status(device), as_json)


def activate(
    file: DeviceFile,
    release: Annotated[str, typer.Argument(help="start of an id; without it the candidate")] = "",
    report: Report = None,
    as_json: Json = False,
) -> None:
    """Probe and use a release that is in the store."""
    device = _device(file, report)
    from edge_runtime import agent

    agent.activate(device, release, _now())
    _say(agent.status(device), as_json)


def rollback(file: DeviceFile, report: Report = None, as_json: Json = False) -> None:
    """Go back to the release before; this one is not taken again by itself."""
    device = _device(file, report)
    from edge_runtime import agent

    agent.roll_back(device, agent.BY_HAND, _now())
    _say(agent.status(device), as_json)


def status(file: DeviceFile, report: Report = None, as_json: Json = False) -> None:
    """What is in use, what failed, when the repository was last reached."""
    device = _device(file, report)
    from edge_runtime import agent
    from edge_runtime.store import read_state

    agent.write_report(device, read_state(device.store), _now())
    _say(agent.status(device), as_json)


def serve(
    file: Settings = None,
    base: Base = None,
    adapter: Adapter = None,
    trust: Trust = None,
    threads: Threads = 0,
    rank: Rank = None,
    port: Port = 8765,
    top: Top = 1,
    reject_below: RejectBelow = 0.0,
    as_json: Json = False,
) -> None:
    """Answer HTTP on 127.0.0.1: POST /v1/classify {"texts": [...]}, GET /health, until Ctrl-C.

    With DEVICE.toml it swaps while it runs; with --base it answers by one adapter, or by the base alone. A
    device whose base writes text is asked as `serve-text` is, and its release in use is the one model. A base
    that draws is asked POST /v1/draw {"label": ...}.
    """
    if (file is None) == (base is None):
        raise typer.BadParameter("give either DEVICE.toml or --base")
    if base is None and (adapter or trust or threads or rank):
        raise typer.BadParameter("--adapter, --trust, --threads and --rank go with --base")
    from edge_runtime.start import end_start, start_lean

    start_lean()
    device = _device(file, None) if file else None
    if device is not None and _writes(device, top, reject_below):
        from edge_runtime.decoder.http.commands import serve_device

        serve_device(device, port, as_json=as_json)
        return
    from edge_runtime.backends import draws

    opened = base if device is None else device.base
    assert opened is not None
    if draws(opened):
        from edge_runtime.drawing.commands import serve_drawing

        if top != 1 or reject_below or rank:
            raise typer.BadParameter("--top, --reject-below and --rank are not of images")
        serve_drawing(device, base, adapter, trust, threads, port, as_json=as_json)
        return
    from edge_runtime.answer_options import AnswerOptions
    from edge_runtime.http_server import serve as run

    def say(url: str) -> None:
        end_start()
        typer.echo(json.dumps({"url": url}) if as_json else f"listening on {url}")
        sys.stdout.flush()

    with _answering(device, base, adapter, trust, threads, rank) as service:
        run(
            service,
            port,
            options=AnswerOptions(top=top, reject_below=reject_below),
            listening_at=say,
        )


def _writes(device: Device, top: int, reject_below: float) -> bool:
    """Whether the device's base writes text. Raises ArtefactError."""
    from edge_runtime.backends import writes_text

    if not writes_text(device.base):
        return False
    if top != 1 or reject_below:
        raise typer.BadParameter("--top and --reject-below are of labels; this base writes text")
    return True


@contextmanager
def _answering(
    device: Device | None,
    base: Path | None,
    adapter: Path | None,
    trust: Path | None,
    threads: int,
    rank: int | None,
) -> Iterator[Answering]:
    if base is not None:
        from edge_runtime.passport import read_policy
        from edge_runtime.single import SingleService

        single = SingleService(
            base, adapter, read_policy(trust) if trust else None, threads=threads, rank=rank
        )
        if single.warning:
            typer.echo(f"warning: {single.warning}", err=True)
        yield single
        return
    from edge_runtime.following import followed
    from edge_runtime.service import Service

    assert device is not None
    with followed(Service(device, clock=time.monotonic)) as service:
        yield service


def _device(file: Path, report: Path | None) -> Any:
    """The settings, which every command reads before it imports what they are for."""
    from edge_runtime.settings import read_device

    device = read_device(file)
    return device if report is None else device.model_copy(update={"report": report})


def _say(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(told, indent=1))
        return
    for what in ("current", "previous"):
        held = told[what]
        typer.echo(f"{what}: {'none' if held is None else 'release ' + str(held['seq'])}")
    if told["personal"] is not None:
        typer.echo(_personal(told["personal"]))
    for fault in told["faults"]:
        typer.echo(printable(f"failed here: release {fault['seq']}: {fault['reason']}"))
    if told["faults"]:
        typer.echo(
            "what failed here is not taken again by itself; `fedge edge update … --retry` does"
        )
    at = told["refreshed"]
    when = "never" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
    outcome = f"; {told['outcome']}" if told["outcome"] else ""
    typer.echo(printable(f"repository reached: {when}{outcome}"))


def _personal(personal: dict[str, Any]) -> str:
    """Of an adapter that nobody has signed."""
    trained = datetime.fromtimestamp(personal["time"], UTC)
    line = (
        f"personal, from release {personal['release']}: trained here on {personal['rows']} rows, "
    )
    line += f"{trained:%Y-%m-%d}"
    if personal["held_out"]:
        line += f"; {personal['quality']} {personal['after']:.3f} on {personal['held_out']} held-out rows, "
        line += f"{personal['before']:.3f} before"
    return f"{line}; {'in use' if personal['in_use'] else 'not in use'}"


def _now() -> datetime:
    return datetime.now(UTC)
