"""``fedge release``: a round's PEFT folder becomes an artefact for devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from protocol.errors import ArtefactError
from protocol.plan import Plan

if TYPE_CHECKING:
    from client.data import Rows


def release(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    base: Annotated[Path, typer.Option("--base", help="the base it was trained on")],
    rows: Annotated[
        Path, typer.Option("--rows", help="JSONL, CSV or Parquet to measure parity and accuracy on")
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
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Write adapter.onnx_adapter, the parity, and the passport: the proof that the log has them."""
    from base_model.release import release_adapter
    from edge_runtime.calibrating import calibrate_release
    from fedge.gate import read_plan
    from server.log import read_log_key
    from server.releasing import log_release
    from server.store import RunStore
    from server.witnessing import HttpWitness

    asked = [HttpWitness(url) for url in witnesses or []]
    if log_key is not None and not log_key.is_file():
        raise ArtefactError(f"{log_key} is not there", "name the file with the log's secret key")
    plan = read_plan(run)
    adapter = _adapter_of(run, round_number)
    held_out = held_out_rows(rows, plan)
    key = read_log_key(log_key) if log_key else None
    store = RunStore(run)  # before a published file is touched: not beside a coordinator
    try:
        bound = plan.release.parity_max_relative
        release_adapter(adapter, base, texts=held_out.texts, bound=bound)
        note, accuracy = calibrate_release(adapter, base, held_out.texts, held_out.labels)
        metrics = {"accuracy": accuracy}
        log_release(
            store,
            plan,
            note.round,
            rows=rows.read_bytes(),
            metrics=metrics,
            log_key=key,
            witnesses=asked,
        )
    finally:
        store.close()
    if as_json:
        typer.echo(json.dumps(note.model_dump(mode="json")))  # in ASCII, for any terminal
        return
    assert note.parity is not None
    Console(markup=False, emoji=False).print(
        f"{adapter}: parity {note.parity.max_relative:.1e} on {note.parity.rows} rows, "
        f"labels agree on {note.parity.label_agreement:.2%}; accuracy {metrics['accuracy']:.3f}, "
        "which is in the log"
    )
    if (fit := note.calibration) is not None:
        Console(markup=False, emoji=False).print(
            f"temperature {fit.temperature:g}: calibration error {fit.ece_before:.3f} before, "
            f"{fit.ece_after:.3f} after, on {fit.rows} rows"
        )


def held_out_rows(path: Path, plan: Plan) -> Rows:
    """The rows to measure on, read as a site reads its own. Raises DataError."""
    from client.data import load_rows

    return load_rows(path, plan.task)


def _adapter_of(run: Path, number: int | None) -> Path:
    rounds = sorted(p.name for p in (run / "rounds").glob("[0-9]*") if p.name.isdecimal())
    if not rounds:
        raise ArtefactError(f"{run} has no finished round", "resume the run first")
    name = rounds[-1] if number is None else f"{number:04d}"
    if name not in rounds:
        raise ArtefactError(f"{run} has no round {number}", f"rounds: {rounds[0]} to {rounds[-1]}")
    return run / "rounds" / name / "adapter"
