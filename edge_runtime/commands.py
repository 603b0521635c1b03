"""``fedge edge``: answer texts on a device, and measure what an adapter costs there."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_runtime import device_commands
from edge_runtime.blends.commands import blend
from edge_runtime.decoder import commands as decoder_commands
from edge_runtime.decoder.http.commands import serve_text
from edge_runtime.drawing.commands import draw
from protocol.errors import DataError, printable
from protocol.manifest import DOCUMENTS
from protocol.media import MEDIA, Medium
from protocol.rows.read import read_texts
from protocol.section import MOST_THREADS

if TYPE_CHECKING:
    from edge_runtime.answer_options import AnswerOptions
    from edge_runtime.service import Service
    from edge_runtime.single import SingleService
    from edge_runtime.tasks import Prediction

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Run a base and its adapters on a device."
)
for _command in ("update", "activate", "rollback", "status", "serve"):
    app.command()(getattr(device_commands, _command))
for _command in ("generate", "chat"):
    app.command()(getattr(decoder_commands, _command))
app.command("serve-text")(serve_text)
app.command()(blend)
app.command()(draw)
Base = Annotated[Path, typer.Option("--base", help="folder of a base")]
Adapter = Annotated[
    Path | None, typer.Option("--adapter", help="folder of a released adapter, or of a blend")
]
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]
Threads = Annotated[
    int, typer.Option("--threads", min=0, max=MOST_THREADS, help="0 = as ONNX Runtime thinks best")
]


@app.command()
def infer(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            help="texts to answer; of another base files: images, sounds, pages as JSON"
        ),
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option("--pair", help="second text, of each text in turn; may be given again"),
    ] = None,
    base: Annotated[Path | None, typer.Option("--base", help="folder of a base")] = None,
    adapter: Adapter = None,
    trust: Annotated[
        Path | None, typer.Option("--trust", help="the log's policy: run released adapters only")
    ] = None,
    device: Annotated[
        Path | None, typer.Option("--device", help="device.toml: what is in use on the device")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", help="one text per line; or JSONL, CSV, Parquet with --column or pages"
        ),
    ] = None,
    column: Annotated[
        str, typer.Option("--column", help="of a file with columns; text, image or audio")
    ] = "",
    pair_column: Annotated[str, typer.Option("--pair-column", help="of second texts")] = "",
    threads: Threads = 0,
    rank: device_commands.Rank = None,
    top: device_commands.Top = 1,
    reject_below: device_commands.RejectBelow = 0.0,
    as_json: Json = False,
) -> None:
    """Answer texts, by a label or a number; without --adapter the base answers with its own head."""
    if pairs and len(pairs) != len(texts or []):
        raise DataError(f"{len(texts or [])} texts and {len(pairs)} --pair", "give each text one")
    if not (texts or file):
        raise DataError("there is nothing to answer", "give texts, or --file")
    if (base is None) == (device is None):
        raise typer.BadParameter("give either --base or --device")
    if base is not None:
        service = _by_base(base, adapter, trust, threads, rank)
    else:
        assert device is not None
        if rank:
            raise typer.BadParameter("--rank goes with --base and --adapter")
        service = _by_device(device)
    from edge_runtime.answer_options import AnswerOptions

    manifest = service.runtime.base.manifest
    medium = MEDIA.get(manifest.task)
    options = AnswerOptions(top=top, reject_below=reject_below)
    if manifest.task == DOCUMENTS:
        _verify_single("documents", "a page", pairs or pair_column)
        rows, named = _pages(texts or [], file, column)
    else:
        rows = _rows(texts or [], pairs, file, column, pair_column, medium)
        named = [_named(row, medium) for row in rows]
    predictions = service.classify(rows, options).predictions
    if as_json:
        answers: list[dict[str, Any]] = [
            row | p.form(options) for row, p in zip(named, predictions, strict=True)
        ]
        typer.echo(json.dumps(answers))
        return
    _print(named, predictions, options)


def _rows(
    texts: list[str],
    pairs: list[str] | None,
    file: Path | None,
    column: str,
    pair_column: str,
    medium: Medium | None,
) -> list[Any]:
    """Texts, pairs or paths of a medium, those of a file behind the others. Raises DataError."""
    if medium is None:
        rows: list[Any] = list(zip(texts, pairs, strict=True)) if pairs else list(texts)
        return rows + (read_texts(file, column or "text", pair_column) if file else [])
    _verify_single(medium.plural, medium.single, pairs or pair_column)
    from protocol.rows.media import read_media_paths

    column = column or medium.column
    return [Path(text) for text in texts] + (read_media_paths(file, column) if file else [])


def _verify_single(plural: str, single: str, pairs: object) -> None:
    """Raises DataError for second texts of what has none."""
    if pairs:
        raise DataError(
            f"the base answers {plural}, and {single} has no second text", "leave it out"
        )


def _pages(
    paths: list[str], file: Path | None, column: str
) -> tuple[list[Any], list[dict[str, str]]]:
    """Pages of JSON files, and those of a file of rows, and what each is called. Raises DataError."""
    from protocol.rows.pages import BOXES, WORDS, read_page, read_placed_pages

    if column:
        raise DataError(
            f"pages are read of the columns `{WORDS}` and `{BOXES}`, not of one",
            "leave --column out",
        )
    rows: list[Any] = [read_page(Path(path)) for path in paths]
    placed = read_placed_pages(file) if file else []
    names = [*paths, *(str(place) for place, _ in placed)]
    return [*rows, *(page for _, page in placed)], [{"page": name} for name in names]


def _named(text: Any, medium: Medium | None) -> dict[str, str]:
    """A text, a pair or a file by the keys of a row."""
    if isinstance(text, str):
        return {"text": text}
    if isinstance(text, tuple):
        return dict(zip(("text", "text_pair"), text, strict=True))
    assert medium is not None
    return {medium.column: str(text if isinstance(text, Path) else text.path)}


def _print(
    rows: Sequence[dict[str, str]], predictions: Sequence[Prediction], options: AnswerOptions
) -> None:
    from rich.console import Console
    from rich.table import Table

    answers = [answer.cells(options) for answer in predictions]
    table = Table(*rows[0], *answers[0])
    for row, cells in zip(rows, answers, strict=True):
        table.add_row(*map(printable, (*row.values(), *cells.values())))
    Console(markup=False, emoji=False).print(table)


def _by_base(
    base: Path, adapter: Path | None, trust: Path | None, threads: int, rank: int | None
) -> SingleService | Service:
    from edge_runtime.passport import read_policy
    from edge_runtime.single import SingleService

    policy = read_policy(trust) if trust else None
    service = SingleService(base, adapter, policy, threads=threads, rank=rank)
    if service.warning:
        typer.echo(f"warning: {service.warning}", err=True)
    return service


def _by_device(device: Path) -> SingleService | Service:
    from edge_runtime.start import end_start, start_lean

    start_lean()
    from edge_runtime.settings import read_device

    settings = read_device(device)
    from edge_runtime.service import Service

    service = Service(settings, clock=time.monotonic)
    end_start()
    return service


@app.command()
def bench(
    base: Base,
    adapter: Adapter = None,
    plain_graph: Annotated[
        Path | None, typer.Option("--plain-graph", help="the same base's graph without slots")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1)] = 1,
    length: Annotated[int, typer.Option("--length", min=1)] = 32,
    repeats: Annotated[int, typer.Option("--repeats", min=1)] = 50,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Time the graph with the adapter off and on, interleaved."""
    from edge_runtime.bench import bench as measure

    result = measure(
        base,
        adapter,
        batch=batch,
        length=length,
        repeats=repeats,
        threads=threads,
        plain_graph=plain_graph,
    )
    if as_json:
        typer.echo(json.dumps(result.to_dict()))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "variant", "median ms", "ratio", "quartiles", title=f"batch {batch} x {length} tokens"
    )
    for timing in result.timings:
        spread = f"{timing.ratio_low:.3f} to {timing.ratio_high:.3f}"
        table.add_row(
            printable(timing.name), f"{timing.median_ms:.2f}", f"{timing.ratio:.3f}", spread
        )
    Console(markup=False, emoji=False).print(table)
