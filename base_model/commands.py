"""``fedge base``: build, fetch, verify, inspect. torch is loaded when a command runs, not before."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from protocol.decoder_manifest import WritingManifest
from protocol.errors import ArtefactError, PlanError, printable
from protocol.media import MEDIA
from storage.regular import read_settings_text

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Prepare or fetch a base, check it, look at it.",
)
Folder = Annotated[Path, typer.Argument(help="folder of a base")]
# What the manifests of one task have and those of another do not.
OF_A_TASK = (
    *("pooling", "max_positions"),
    *("embedding_bits", "affine", "tied", "encoder_layers", "layers", "vocab_size"),
    *("begin", "start", "ends"),
    "classes",
)
WRITERS = ("causal-lm", "seq2seq-lm")  # tasks of bases that write
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]
Task = Annotated[
    str,
    typer.Option(
        "--task",
        help="sequence-classification; causal-lm for one that writes, as a .gguf file does; seq2seq-lm "
        "for one that turns a text into another; image-classification, audio-classification, "
        "document-classification or image-generation, as the folder of a vision transformer, of Whisper or "
        "wav2vec 2.0, of LayoutLM, or of a diffusers pipeline that draws pixels is",
    ),
]
EmbeddingBits = Annotated[
    int,
    typer.Option(
        "--embedding-bits", help="of bases that write; 0 is 8, or --bits where that is more"
    ),
]
ActivationBits = Annotated[
    int,
    typer.Option(
        "--activation-bits",
        help="of bases that write: 8 rounds what linears multiply: faster, and less exact; 32 does not",
    ),
]
Context = Annotated[
    int,
    typer.Option(
        "--context", min=0, help="of bases that write: most tokens; 0: the model's, up to 32768"
    ),
]
Calibration = Annotated[
    str,
    typer.Option(
        "--calibration",
        help="of bases that write: a text file that codes of 4 bits are fitted to; none: plain ones; "
        "without it a page that comes with fedge",
    ),
]
Scales = Annotated[
    bool,
    typer.Option("--scales", help="for methods that scale linears; answers take 2 to 3 % longer"),
]

Seconds = Annotated[
    int,
    typer.Option(
        "--seconds",
        min=0,
        help="of bases that hear samples, as wav2vec 2.0's: of a sound; longer ones are cut",
    ),
]


@app.command()
def build(
    source: Annotated[
        str, typer.Argument(help="folder, Hub id, .gguf file, or package:module/either")
    ],
    out: Annotated[Path, typer.Option("--out", help="folder to write; must not exist yet")],
    task: Task = "",
    bits: Annotated[int, typer.Option("--bits", help="4, 8, 16 or 32")] = 4,
    embedding_bits: EmbeddingBits = 0,
    activation_bits: ActivationBits = 32,
    context: Context = 0,
    calibration: Calibration = "",
    pooling: Annotated[str, typer.Option("--pooling", help="auto, mean, cls or pooler")] = "auto",
    scales: Scales = False,
    seconds: Seconds = 0,
    as_json: Json = False,
) -> None:
    """Quantise a model once and export its edge graph."""
    reasons: list[str] = []
    task = task or _usual_task(source)
    if seconds and task not in MEDIA:
        raise PlanError("--seconds is for bases of sounds", "leave it out")
    decoders = Decoders(
        embedding_bits=embedding_bits,
        activation_bits=activation_bits,
        context=context,
        calibration=calibration,
    )
    with _build_bar(quiet=as_json) as tell:
        if task in WRITERS:
            if scales or pooling != "auto":
                raise PlanError(
                    "--pooling and --scales are for bases that sort texts", "leave them out"
                )
            manifest: Any = _built_writer(task, source, out, bits, decoders, tell, reasons.append)
        elif task in MEDIA:
            decoders.verify_unused(source)
            if pooling != "auto":
                raise PlanError("--pooling is for bases that sort texts", "leave it out")
            from base_model.media_build import builder_of

            manifest = builder_of(task)(
                source,
                bits=bits,
                out=out,
                scales=scales,
                seconds=seconds,
                progress=tell,
                explain=reasons.append,
            )
        else:
            decoders.verify_unused(source)
            from base_model.build import build_base

            manifest = build_base(
                source,
                task=task,
                bits=bits,
                out=out,
                pooling=pooling,
                scales=scales,
                progress=tell,
                explain=reasons.append,
            )
    _show(
        out, _summary(manifest) | {"reasons": reasons if as_json else "\n".join(reasons)}, as_json
    )


@dataclass(frozen=True, kw_only=True)
class Decoders:
    """Options that only a base that writes text has; 0, 32 and empty where they are left out."""

    embedding_bits: int
    activation_bits: int
    context: int
    calibration: str

    def verify_unused(self, source: str) -> None:
        """Raises PlanError where one is set, ArtefactError for a source that can only write."""
        if (self.embedding_bits, self.activation_bits) != (0, 32) or (
            self.context or self.calibration
        ):
            raise PlanError(
                "--embedding-bits, --activation-bits, --context and --calibration are for "
                "--task causal-lm or seq2seq-lm",
                "leave them out",
            )
        if _is_gguf(source):
            raise ArtefactError(
                f"{source}: a GGUF file holds a model that writes text, and one that sorts texts "
                "was asked for",
                "leave --task out, or name the folder of an encoder",
            )


def _usual_task(source: str) -> str:
    """What a source is built for where nobody says."""
    if _is_gguf(source):
        return "causal-lm"
    from base_model.media_read import task_of_folder

    return task_of_folder(source) or "sequence-classification"


def _is_gguf(source: str) -> bool:
    return source.lower().endswith(".gguf")


def _built_writer(
    task: str,
    source: str,
    out: Path,
    bits: int,
    options: Decoders,
    tell: Callable[[str, float], None],
    explain: Callable[[str], None],
) -> Any:
    """Its manifest. Raises PlanError for options that do not go together."""
    if bits != 4 and options.calibration not in ("", "none"):
        raise PlanError(
            "--calibration is for codes of 4 bits", f"leave out either it or --bits {bits}"
        )
    tell("reading", 0.0)
    model, build = _writer(task, source)
    return build(
        model,
        bits=bits,
        embedding_bits=options.embedding_bits or max(bits, 8),
        activation_bits=options.activation_bits,
        out=out,
        context=options.context or None,
        calibration=_calibration_text(options.calibration),
        progress=tell,
        explain=explain,
    )


def _writer(task: str, source: str) -> tuple[Any, Callable[..., Any]]:
    """A source that was read, and what makes a base of it. Raises ArtefactError."""
    if task == "seq2seq-lm":
        if _is_gguf(source):
            raise ArtefactError(
                f"{source}: models that turn a text into another are not read from GGUF files",
                "name the folder of the model as transformers saves it",
            )
        from base_model.seq2seq.build import build_seq2seq
        from base_model.seq2seq.folder import seq2seq_source

        return seq2seq_source(source), build_seq2seq
    from base_model.decoder.build import build_decoder
    from base_model.decoder.sources import decoder_source

    return decoder_source(source), build_decoder


def _calibration_text(option: str) -> str | None:
    """What ``--calibration`` stands for. Raises ArtefactError."""
    from base_model.decoder.calibration import default_text

    if not option:
        return default_text()
    if option == "none":
        return None
    try:
        return read_settings_text(Path(option))
    except (OSError, UnicodeDecodeError):
        raise ArtefactError(
            f"{option}: no text file that can be read", "name one in UTF-8, or `none`"
        ) from None


@app.command()
def verify(folder: Folder, as_json: Json = False) -> None:
    """Hash every file and compare it with the manifest; see that adapters still have an effect."""
    from base_model.decoder.texts import verify_tokenizer
    from base_model.slot_check import verify_slots
    from base_model.verify import verify_base

    manifest = verify_base(folder)
    verify_slots(folder, manifest)
    if isinstance(manifest, WritingManifest):
        verify_tokenizer(folder, manifest)
    _show(
        folder,
        {"verified": True, "fingerprint": manifest.fingerprint, "files": len(manifest.files)},
        as_json,
    )


@app.command()
def inspect(folder: Folder, as_json: Json = False) -> None:
    """What a base is: fingerprint, size, layers that can be adapted."""
    from base_model.verify import read_manifest

    _show(folder, _summary(read_manifest(folder)), as_json)


@app.command()
def fetch(
    fingerprint: Annotated[str, typer.Argument(help="of the base, 64 hex digits")],
    mirrors: Annotated[list[str], typer.Option("--from", help="folder or URL; one or more")],
    into: Annotated[Path, typer.Option("--into", help="cache: a folder of bases")],
    manifest: Annotated[str, typer.Option("--manifest", help="sha256 of manifest.json")] = "",
    seconds: Annotated[float, typer.Option("--seconds", min=1.0, help="for all of it")] = 3600.0,
    limit: Annotated[int, typer.Option("--limit", min=1, help="bytes of a base")] = 2**36,
    as_json: Json = False,
) -> None:
    """Get a base from mirrors: verified as it comes, resumed after a cut."""
    from base_model.fetch import Limits, fetch_base
    from base_model.verify import verify_base

    if not re.fullmatch("[0-9a-f]{64}", fingerprint):
        raise typer.BadParameter("a fingerprint has 64 hex digits")
    with fetch_bar(quiet=as_json) as tell:
        folder = fetch_base(
            fingerprint,
            mirrors=mirrors,
            cache=into,
            manifest_sha256=manifest,
            limits=Limits(seconds=seconds, total=limit),
            progress=tell,
        )
    _show(folder, _summary(verify_base(folder)), as_json)


@contextmanager
def _build_bar(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """A bar of a build's steps on the terminal's error output."""
    console = Console(stderr=True, markup=False, emoji=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=quiet) as progress:
        bar = progress.add_task("starting", total=1.0)

        def tell(step: str, share: float) -> None:
            progress.update(bar, description=step, completed=share)

        yield tell


@contextmanager
def fetch_bar(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for :func:`base_model.fetch.fetch_base` on the terminal's error output."""
    console = Console(stderr=True, markup=False, emoji=False)
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), DownloadColumn()),
        *(TransferSpeedColumn(), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console, disable=quiet) as progress:
        bar = progress.add_task("manifest.json", total=None)

        def tell(name: str, done: int, total: int) -> None:
            progress.update(bar, description=name, completed=done, total=total or None)

        yield tell


def _summary(manifest: Any) -> dict[str, Any]:
    ends = sorted({linear.path.rsplit(".", 1)[-1] for linear in manifest.linears})
    return {
        "fingerprint": manifest.fingerprint,
        "source": manifest.source,
        "task": manifest.task,
        "family": manifest.family,
        **{name: getattr(manifest, name) for name in OF_A_TASK if hasattr(manifest, name)},
        "bits": manifest.bits,
        "parameters": manifest.parameters,
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "linears": len(manifest.linears),
        "targets": ends,
        "slots": len(manifest.slots()),
        "made_with": manifest.made_with,
    }


def _show(folder: Path, facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **facts}))
        return
    # Without lines a fingerprint fits into 80 columns: it is there to be copied.
    table = Table(title=printable(str(folder)), show_header=False, box=None, padding=(0, 1, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if isinstance(value, dict):
            text = ", ".join(f"{k} {v}" for k, v in value.items())
        lines = "\n".join(map(printable, text.split("\n")))  # names are of whoever built the base
        table.add_row(key.replace("_", " "), f"{value:,}" if type(value) is int else lines)
    Console(markup=False, emoji=False).print(table)
