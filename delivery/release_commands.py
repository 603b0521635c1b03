"""``fedge release``: a round's PEFT folder becomes an artefact for devices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from protocol.errors import ArtefactError, DataError, FedgeError
from protocol.methods import method_of
from protocol.plan import Plan
from protocol.rows.measured import measured_rows
from protocol.rows.read import Text

if TYPE_CHECKING:
    from client.data import Rows
    from protocol.peft_format import ReleaseNote
    from server.witnessing import HttpWitness


class Kind(StrEnum):
    """A merged model's form: a Hugging Face folder, or an ONNX file."""

    HF = "hf"
    ONNX = "onnx"


def release(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    base: Annotated[Path, typer.Option("--base", help="the base it was trained on")],
    rows: Annotated[
        Path, typer.Option("--rows", help="JSONL, CSV or Parquet to measure parity and quality on")
    ],
    round_number: Annotated[
        int | None, typer.Option("--round", help="the last one without it")
    ] = None,
    witnesses: Annotated[
        list[str] | None, typer.Option("--witness", help="URL of a witness; may be given again")
    ] = None,
    log_key: Annotated[
        Path | None, typer.Option("--log-key", help="the log's secret key, when the run has none")
    ] = None,
    merged: Annotated[
        list[Kind] | None,
        typer.Option(
            "--merged", help="also base and adapter as one float model; may be given again"
        ),
    ] = None,
    merged_bits: Annotated[
        int, typer.Option("--merged-bits", help="of its numbers: 16 or 32")
    ] = 32,
    merged_out: Annotated[
        Path | None, typer.Option("--merged-out", help="folder for them; without it RUN-merged")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Write adapter.onnx_adapter, the parity, and the passport: the proof that the log has them."""
    from delivery.gate import read_plan
    from server.witnessing import HttpWitness

    cosigners = [HttpWitness(url) for url in witnesses or []]
    if log_key is not None and not log_key.is_file():
        raise ArtefactError(f"{log_key} is not there", "name the file with the log's secret key")
    plan = read_plan(run)
    adapter = _adapter_of(run, round_number)
    folders = _folders(merged or [], merged_out or run.with_name(f"{run.name}-merged"))
    _check_merged(folders, merged_bits, plan)
    held_out = held_out_rows(rows, plan)
    note, quality = _measure_and_log(run, plan, adapter, base, held_out, rows, log_key, cosigners)
    parities = _write_merged(adapter, base, folders, merged_bits, plan, held_out.texts)
    if as_json:
        document = note.model_dump(mode="json") | ({"merged": parities} if parities else {})
        typer.echo(json.dumps(document))  # in ASCII, for any terminal
        return
    _print_release(adapter, note, plan.task.QUALITY.said(quality), parities)


def _measure_and_log(
    run: Path,
    plan: Plan,
    adapter: Path,
    base: Path,
    held_out: Rows,
    rows: Path,
    log_key: Path | None,
    cosigners: list[HttpWitness],
) -> tuple[ReleaseNote, float]:
    """The released adapter's note and its quality, both in the log; a refusal is noted in the run."""
    from base_model.peft_folder import read_note
    from base_model.release import release_adapter
    from edge_runtime.calibrating import calibrate_release
    from server.log import read_log_key
    from server.releasing import log_release, note_refusal
    from server.store import RunStore

    key = read_log_key(log_key) if log_key else None
    store = RunStore(run)  # before a published file is touched: not beside a coordinator
    try:
        release_adapter(
            adapter,
            base,
            texts=held_out.questions(),
            bound=plan.release.parity_max_relative,
            absolute=plan.release.parity_max_absolute,
        )
        if not plan.task.outputs:
            note, quality = read_note(adapter), _quality_by_client(plan, adapter, base, held_out)
        else:
            note, quality = calibrate_release(adapter, base, held_out.questions(), held_out.targets)
        log_release(
            store,
            plan,
            note.round,
            rows=measured_rows(rows, held_out.texts),
            metrics={plan.task.QUALITY.name: quality},
            log_key=key,
            witnesses=cosigners,
        )
    except FedgeError as error:
        note_refusal(run, int(adapter.parent.name), error)
        raise
    finally:
        store.close()
    return note, quality


def _quality_by_client(plan: Plan, adapter: Path, base: Path, rows: Rows) -> float:
    """The adapter's quality on rows as a client measures it. Raises DataError."""
    from base_model.peft_folder import read_peft
    from client.worker import Worker

    worker = Worker(plan, base)
    score = worker.score(worker.recipe.resumed(read_peft(adapter)), worker.encode(rows))
    quality = plan.task.quality_of(score.metrics)
    if quality is None:
        raise DataError("nothing of the rows counts", "name other rows")
    return quality


def _print_release(
    adapter: Path, note: ReleaseNote, quality: str, parities: dict[str, dict[str, Any]]
) -> None:
    assert note.parity is not None
    console = Console(markup=False, emoji=False)
    console.print(
        f"{adapter}: parity {note.parity.max_relative:.1e} on {note.parity.rows} rows, "
        f"{_agreement(note)}{quality}, which is in the log"
    )
    if (fit := note.calibration) is not None:
        console.print(
            f"temperature {fit.temperature:g}: calibration error {fit.ece_before:.3f} before, "
            f"{fit.ece_after:.3f} after, on {fit.rows} rows"
        )
    for folder, parity in parities.items():
        console.print(
            f"{folder}: parity {parity['max_relative']:.1e} with the released adapter, labels agree on "
            f"{parity['label_agreement']:.2%}; its README.md says how to open it"
        )


def _agreement(note: ReleaseNote) -> str:
    assert note.parity is not None
    if note.parity.tokens is not None:
        alike, written = note.parity.tokens
        return f"{alike} of {written} tokens written alike; "
    return f"labels agree on {note.parity.label_agreement:.2%}; " if note.outputs > 1 else ""


def _folders(kinds: list[Kind], out: Path) -> dict[Kind, Path]:
    return {kind: out / kind for kind in dict.fromkeys(kinds)}


def _check_merged(folders: dict[Kind, Path], bits: int, plan: Plan) -> None:
    """What would be refused after all the work. Raises ArtefactError."""
    if bits not in (16, 32):
        raise typer.BadParameter("--merged-bits is 16 or 32")
    if folders and (plan.task.kind != "classification" or plan.task.pairs):
        raise ArtefactError(
            "merged models are written for labels of single texts, the plan's task is another",
            "release it without --merged",
        )
    if Kind.HF in folders and method_of(plan.adapter).tokens(plan.adapter):
        raise ArtefactError(
            "a soft prompt is no weight of a Hugging Face model", "write it with --merged onnx"
        )
    for folder in folders.values():
        if folder.exists():
            raise ArtefactError(f"{folder} exists already", "remove it, or name --merged-out")


def _write_merged(
    adapter: Path,
    base: Path,
    folders: dict[Kind, Path],
    bits: int,
    plan: Plan,
    texts: Sequence[Text],
) -> dict[str, dict[str, Any]]:
    """The merged models' parity by folder."""
    if not folders:
        return {}
    single = [text for text in texts if isinstance(text, str)]  # as checked before
    from base_model.merged import write_merged
    from base_model.parity import Bounds

    bounds = Bounds(
        relative=plan.release.parity_max_relative, absolute=plan.release.parity_max_absolute
    )
    return {
        str(folder): write_merged(
            adapter, base, folder, kind=kind, bits=bits, texts=single, bounds=bounds
        ).model_dump(mode="json")
        for kind, folder in folders.items()
    }


def held_out_rows(path: Path, plan: Plan) -> Rows:
    """The rows to measure on, read as a site reads its own. Raises DataError."""
    from client.data import load_rows

    return load_rows(path, plan.task)


def _adapter_of(run: Path, number: int | None) -> Path:
    rounds = sorted(
        (p.name for p in (run / "rounds").glob("[0-9]*") if p.name.isdecimal()), key=int
    )
    if not rounds:
        raise ArtefactError(f"{run} has no finished round", "resume the run first")
    name = rounds[-1] if number is None else f"{number:04d}"
    if name not in rounds:
        raise ArtefactError(f"{run} has no round {number}", f"rounds: {rounds[0]} to {rounds[-1]}")
    return run / "rounds" / name / "adapter"
