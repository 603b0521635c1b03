"""``fedge export``: a released adapter for runtimes of other people."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from protocol.errors import ArtefactError, printable


class Runtime(StrEnum):
    """Who is to run it."""

    gguf = "gguf"
    genai = "genai"


def export(
    adapter: Annotated[Path, typer.Argument(help="folder of a released adapter")],
    base: Annotated[Path, typer.Option("--base", help="the base that it was trained on")],
    to: Annotated[
        Runtime,
        typer.Option("--to", help="gguf: a file for llama.cpp; genai: a folder with the base"),
    ],
    out: Annotated[Path, typer.Option("--out", help="the new file or folder")],
    trust: Annotated[
        Path | None, typer.Option("--trust", help="the log's policy: export released adapters only")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable output")] = False,
) -> None:
    """Write an adapter of a base that writes text for llama.cpp, or with its base for onnxruntime-genai.

    A file for llama.cpp runs beside the GGUF file that the base was built from: `--lora FILE`.
    """
    from base_model.decoder.exports import export_genai, export_gguf
    from base_model.files import writing

    if out.exists():
        raise ArtefactError(f"{out} exists already", "remove it, or name another with --out")
    if trust is not None:
        from edge_runtime.adapter import read_note
        from edge_runtime.passport import read_policy, verify_passport

        number = read_note(adapter).round
        verify_passport(adapter, round_number=number, policy=read_policy(trust))
    write = export_gguf if to is Runtime.gguf else export_genai
    with writing(out):
        write(adapter, base, out)
    said = (
        json.dumps({"out": str(out), "to": to.value}) if as_json else printable(f"{out} is written")
    )
    typer.echo(said)
