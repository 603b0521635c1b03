"""``fedge edge draw``: images of a label, as PNG files."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import DataError, MachineError, printable
from protocol.section import MOST_THREADS

if TYPE_CHECKING:
    from edge_runtime.drawing.sampling import Bytes
    from edge_runtime.drawing.service import Drawing
    from edge_runtime.settings import Device


def draw(
    label: Annotated[str, typer.Argument(help="what to draw: a label of the adapter")],
    out: Annotated[Path, typer.Option("--out", help="PNG file; of several, NAME-1.png and so on")],
    base: Annotated[Path | None, typer.Option("--base", help="folder of a base that draws")] = None,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="folder of a release or a blend")
    ] = None,
    trust: Annotated[
        Path | None, typer.Option("--trust", help="the log's policy: run released adapters only")
    ] = None,
    device: Annotated[
        Path | None, typer.Option("--device", help="device.toml: what is in use on the device")
    ] = None,
    images: Annotated[int, typer.Option("--images", help="how many")] = 1,
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="from noise to an image; 50, or all that there are"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="the same one gives the same images")] = 0,
    guidance: Annotated[
        float,
        typer.Option("--guidance", help="above 1: more of the label, and twice the time"),
    ] = 1.0,
    threads: Annotated[
        int, typer.Option("--threads", min=0, max=MOST_THREADS, help="0 = as ONNX Runtime thinks")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable output")] = False,
) -> None:
    """Draw images of a label; without --adapter a label is a class of the base, by its number."""
    if (base is None) == (device is None):
        raise typer.BadParameter("give either --base or --device")
    if device is not None and (adapter or trust or threads):
        raise typer.BadParameter("--adapter, --trust and --threads go with --base")
    _verify_writable(out)
    from edge_runtime.drawing.sampling import Wish, calls_of, verify_wish

    settings = _settings(device) if device else None
    wish = Wish(label=label, images=images, steps=steps, seed=seed, guidance=guidance)
    with (
        drawing(settings, base, adapter, trust, threads) as service,
        _bar(calls_of(service.base, wish), shown=not as_json) as on_step,
    ):
        answer = service.draw(wish, on_step)
        taken = verify_wish(wish, service.base.manifest.schedule.steps)
    files = _written(out, answer.images)
    if as_json:
        named = {"files": [str(path) for path in files], "label": label, "seed": seed}
        named |= {"steps": taken, "guidance": guidance}
        typer.echo(json.dumps({"release": answer.release, "seq": answer.seq} | named))
        return
    for path in files:
        typer.echo(printable(str(path)))


def _verify_writable(out: Path) -> None:
    """Before anything is drawn."""
    if out.suffix.lower() != ".png":
        raise DataError(f"{out}: images are written as PNG", "name a file that ends in .png")
    if not out.parent.is_dir():
        raise MachineError(f"{out} cannot be written: its folder is not there", "make it")


def _written(out: Path, images: Bytes) -> list[Path]:
    """A file for each, whole or not at all. Raises MachineError."""
    from edge_runtime.drawing.png import png
    from storage.whole import write_whole

    files = _names(out, len(images))
    for path, image in zip(files, images, strict=True):
        try:
            write_whole(path, png(image))
        except OSError as error:
            raise MachineError(
                f"{path} cannot be written: {error.strerror}", "name another file"
            ) from None
    return files


def serve_drawing(
    device: Device | None,
    base: Path | None,
    adapter: Path | None,
    trust: Path | None,
    threads: int,
    port: int,
    *,
    as_json: bool,
) -> None:
    """``fedge edge serve`` with a base that draws, until the process is told to stop."""
    from edge_runtime.drawing.http_app import DrawApp
    from edge_runtime.http_server import run, settings_of
    from edge_runtime.start import end_start

    def say(url: str) -> None:
        end_start()
        typer.echo(json.dumps({"url": url}) if as_json else f"listening on {url}")
        sys.stdout.flush()

    with drawing(device, base, adapter, trust, threads) as service:
        run(settings_of(DrawApp(service)), port, listening_at=say)


@contextmanager
def drawing(
    device: Device | None,
    base: Path | None,
    adapter: Path | None,
    trust: Path | None,
    threads: int,
) -> Iterator[Drawing]:
    """What draws: of a device, whose store is followed, or of a base with an adapter."""
    from edge_runtime.drawing.service import FollowingDrawing, SingleDrawing
    from edge_runtime.following import followed

    if base is not None:
        from edge_runtime.passport import read_policy

        policy = read_policy(trust) if trust else None
        single = SingleDrawing(base, adapter, policy, threads=threads)
        if single.warning:
            typer.echo(f"warning: {single.warning}", err=True)
        yield single
        return
    assert device is not None
    with followed(FollowingDrawing(device, clock=time.monotonic)) as service:
        yield service


@contextmanager
def _bar(calls: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    """What is called before every step, and shows people how far it is."""
    if not shown or not sys.stderr.isatty():
        yield lambda: None
        return
    with typer.progressbar(length=calls, label="drawing", file=sys.stderr) as bar:
        yield lambda: bar.update(1)


def _settings(device: Path) -> Device:
    from edge_runtime.settings import read_device

    return read_device(device)


def _names(out: Path, count: int) -> list[Path]:
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, count + 1)]
