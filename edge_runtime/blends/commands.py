"""``fedge edge blend``: several released adapters as one, by weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import DataError, printable

if TYPE_CHECKING:
    from edge_runtime.blends.making import Share


def blend(
    out: Annotated[Path, typer.Argument(help="folder of the blend, to be written")],
    base: Annotated[Path, typer.Option("--base", help="folder of the base they all belong to")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="FOLDER=WEIGHT",
            help="a released adapter and its weight, which may be negative; may be given again",
        ),
    ] = None,
    trust: Annotated[
        Path | None, typer.Option("--trust", help="the log's policy: blend released adapters only")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable output")] = False,
) -> None:
    """Add adapters of one base up, by weights, as one adapter. It is no release: no log vouches for it.

    `infer`, `serve`, `draw`, `generate`, `chat` and `serve-text` take its folder as --adapter, without
    --trust.
    Weights of adapters with a head have to sum to 1. Soft prompts and prefixes cannot be blended.
    """
    shares = [_share(text) for text in adapter or []]
    from edge_runtime.blends.making import blend as make
    from edge_runtime.passport import read_policy
    from protocol.forms import UP

    note, tensors = make(out, base, shares, policy=read_policy(trust) if trust else None)
    rank = max((len(value) for name, value in tensors.items() if name.endswith(UP)), default=0)
    size = sum(value.nbytes for value in tensors.values())
    form = {
        "blend": str(out),
        "verified": note.verified,
        "rank": rank,
        "bytes": size,
        "parts": [part.model_dump() for part in note.parts],
    }
    if as_json:
        typer.echo(json.dumps(form))
        return
    ranks = f", the highest rank is {rank}" if rank else ""
    typer.echo(printable(f"{out}: {len(note.parts)} adapters as one, {size} bytes{ranks}"))
    vouched = (
        "each is a release in a log that you trust" if note.verified else "nobody verified them"
    )
    typer.echo(f"what it is made of: {vouched}; the blend itself is no release")


def _share(text: str) -> Share:
    """An adapter's folder and weight. Raises DataError."""
    from edge_runtime.blends.making import Share

    folder, _, weight = text.rpartition("=")
    try:
        if not folder:
            raise ValueError
        return Share(folder=Path(folder), weight=float(weight))
    except ValueError:
        raise DataError(
            f"--adapter {text[:80]}: this is no FOLDER=WEIGHT", "give --adapter adapters/ward=0.7"
        ) from None
