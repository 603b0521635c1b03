"""A device adapts the release in use to rows of its own; rows and adapter stay on it. (docs/adr/0049)

Composed up here, because a device's runtime knows neither what derives programs nor what trains. No torch, no
Flower: onnxruntime, and onnx to write the program.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from base_model.files import writing
from base_model.programs.slots import slot_layout, slot_program
from base_model.verify import open_tokenizer, verify_base
from base_model.weights_file import WEIGHTS
from client.batches import encode, held_out
from client.data import Rows, load_rows
from client.engine.onnx_engine import OnnxEngine
from client.examples import Examples
from client.tasks import OUTPUT_TASKS
from client.tasks.media import encoded_files
from client.training import Trained, train
from edge_runtime import agent
from edge_runtime.adapter import read_note, read_tensors
from edge_runtime.backends import draws, writes_text
from edge_runtime.backends.encoder import EncoderBackend
from edge_runtime.base import check_file, read_manifest
from edge_runtime.calibrating import calibrate_adapter
from edge_runtime.edge_adapter import write_edge_adapter
from edge_runtime.mapped_graph import open_device_base
from edge_runtime.runtime import EdgeRuntime
from edge_runtime.settings import Device
from edge_runtime.store import Installed, Personal, Store, read_state, release_folder
from edge_runtime.tasks import task_named as edge_task
from protocol.decoder_manifest import WritingManifest
from protocol.denoiser_manifest import DenoiserManifest
from protocol.encoding import seed_from, vector_digest
from protocol.errors import ArtefactError, DataError, DeliveryError, UpdateError
from protocol.layout import Layout, Tensors
from protocol.manifest import DOCUMENTS, TYPE_IDS
from protocol.manifests import SortingManifest
from protocol.media import MEDIA
from protocol.media_manifest import MediaManifest
from protocol.peft_format import EDGE_FILE, RELEASE_FILE, ReleaseNote, render_release
from protocol.plan import validated
from protocol.plan_sections import Local
from protocol.tasks import MEDIA_TASKS, TASKS, Task
from protocol.tasks.base import Quality
from protocol.tasks.classification import Classification
from protocol.tasks.document_classification import DocumentClassification
from protocol.tasks.regression import Regression
from storage.regular import sha256_of
from storage.whole import PRIVATE, write_whole

HOLDOUT, ENOUGH = 0.2, 20  # of so many rows a share is held out unless the user says otherwise
STAYS = "what answers stays as it is"
OnStep = Callable[[int, int], None]  # steps done, of all


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to train on, and how. ``text`` is the column of texts or files, None: as the task calls it.
    ``column`` has the answers, ``pair`` second texts, ``boxes`` those of pages' words, empty: as the task
    calls them.

    ``holdout``: share of rows to measure on; None: HOLDOUT of ENOUGH rows.
    """

    data: Path
    text: str | None
    pair: str
    column: str
    local: Local
    holdout: float | None
    boxes: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it; ``loss`` is the last epoch's mean over rows of the task's."""

    personal: Personal
    steps: int
    loss: float
    seconds: float

    def form(self) -> dict[str, Any]:
        """Plain values for people and programs; ``before`` and ``after`` are None with no row held out."""
        personal = self.personal
        return {
            "personal": personal.id,
            "release": personal.adapter.seq,
            "rows": personal.rows,
            "held_out": personal.held_out,
            "quality": personal.quality,
            "before": personal.before,
            "after": personal.after,
            "loss": self.loss,
            "steps": self.steps,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """The release that is adapted, whatever a personal adapter was made of it before."""

    id: str
    seq: int
    note: ReleaseNote
    tensors: Tensors


@dataclass(frozen=True, kw_only=True)
class _Data:
    """Rows to train on and rows held out, with the origin's quality on them, None where there are none."""

    kept: Rows
    held: Rows
    before: float | None


def adapt(device: Device, request: Request, now: datetime, on_step: OnStep) -> Outcome:
    """Train from the release in use, measure, probe, and let the result answer in its place.

    Nothing is written before the training has ended. Raises DataError for rows that do not fit, DeliveryError
    `personal...` or `probe...` when the device does not take it, ArtefactError for a damaged or partial
    base: then what answers is what did before.
    """
    _verify_trains(device)
    origin_id, folder, installed = _current(device)
    manifest = _trainable(device.base)
    runtime = EdgeRuntime(open_device_base(device))
    runtime.activate(folder)
    note = read_note(folder)
    origin = _Origin(
        id=origin_id, seq=installed.seq, note=note, tensors=read_tensors(folder / EDGE_FILE)
    )
    data = _data(request, note, runtime)
    layout = slot_layout(origin.tensors)
    program = slot_program(device.base, manifest, layout, kind=note.task, pairs=note.pairs)
    engine = OnnxEngine(program, device.base, layout, threads=device.threads)
    encoded = _encoded(data.kept, note, manifest, device.base)
    trained = _train(engine, origin, encoded, request.local, on_step)
    with Store(device.store, wait_s=2 * device.deadline_s) as store:
        staged = store.new_personal()
        after = _write(staged, origin, layout, trained.tensors, runtime, data.held)
        personal = _described(staged, origin, data, after, now)
        _verify_better(store, personal, TASKS[note.task].QUALITY)
        agent.adopt(device, store, EncoderBackend(runtime), staged, personal, now)
    return Outcome(
        personal=personal,
        steps=trained.steps,
        loss=trained.loss_sum / trained.examples,
        seconds=round(trained.seconds, 3),
    )


def _verify_trains(device: Device) -> None:
    """The device's settings and its base allow it. Raises DeliveryError, ArtefactError."""
    if not device.personal:
        raise DeliveryError(
            "personal.forbidden",
            f"the settings of {device.id} say `personal = false`: it runs what was delivered, no more",
            "ask whoever looks after this device",
        )
    if writes_text(device.base):
        raise DeliveryError(
            "personal.text",
            f"the base of {device.id} writes text: on a device such a base is not trained",
            f"train in rounds, by a plan of its task; {STAYS}",
        )
    if draws(device.base):
        raise DeliveryError(
            "personal.drawing",
            f"the base of {device.id} draws images: on a device such a base is not trained",
            f"train in rounds, by a plan of its task; {STAYS}",
        )


def _current(device: Device) -> tuple[str, Path, Installed]:
    """The release in use and where it lies, its files as they were installed."""
    state = read_state(device.store)
    if state.current is None:
        raise DeliveryError("store.unknown", "no release is in use", "`fedge edge update` first")
    folder, installed = release_folder(device.store, state.current), state.installed[state.current]
    for name, sha256 in installed.files.items():
        check_file(folder / name, sha256)
    return state.current, folder, installed


def _trainable(base: Path) -> SortingManifest:
    """The manifest of a whole base: a device that only answers may lack the weights."""
    if not (base / WEIGHTS).is_file() and WEIGHTS in read_manifest(base).files:
        raise ArtefactError(
            f"{base / WEIGHTS} is missing: this device's base can answer, not train",
            f"copy this file of the base to the device; {STAYS}",
        )
    manifest = verify_base(base)
    # which was looked at before
    assert not isinstance(manifest, WritingManifest | DenoiserManifest)
    return manifest


def _data(request: Request, note: ReleaseNote, runtime: EdgeRuntime) -> _Data:
    """The file's rows, parted. Raises DataError."""
    rows = load_rows(request.data, _task(note, request))
    share = (
        (HOLDOUT if len(rows) >= ENOUGH else 0.0) if request.holdout is None else request.holdout
    )
    out = int(len(rows) * share)
    if len(rows) - out < 1:
        raise DataError(f"{request.data}: there are no rows to train on", "give it some")
    parts = held_out(len(rows), out, seed=seed_from("personal-holdout", len(rows)))
    kept, held = (rows.take(part.tolist()) for part in parts)
    before = None
    if len(held):
        outputs = runtime.logits(held.questions())
        before, _ = edge_task(note.task).measured(outputs, np.asarray(held.targets))
    return _Data(kept=kept, held=held, before=before)


def _named(column: str | None, default: str) -> str:
    """One that is named, be it odd, is nobody's default."""
    return default if column is None else column


def _task(note: ReleaseNote, request: Request) -> Task:
    """What the release answers, with the columns of the device's own rows. Raises DataError, PlanError."""
    column, pair = request.column, request.pair or ("text_pair" if note.pairs else "")
    if bool(pair) != note.pairs:
        raise DataError("the release in use answers single texts", "leave --pair-column out")
    if request.boxes and note.task != DOCUMENTS:
        raise DataError("the release in use answers no documents", "leave --boxes out")
    options = "the options of `edge train`, for the release in use"
    if note.task in MEDIA:
        name = MEDIA[note.task].column
        files: dict[str, Any] = {"kind": note.task, "labels": note.labels}
        files |= {name: _named(request.text, name), "label": column or "label"}
        return validated(MEDIA_TASKS[note.task], files, source=options)
    if note.task == DOCUMENTS:
        pages: dict[str, Any] = {"kind": note.task, "labels": note.labels}
        pages |= {"words": _named(request.text, "words"), "label": column or "label"}
        pages |= {"boxes": request.boxes or "boxes", "max_length": note.max_length}
        return validated(DocumentClassification, pages, source=options)
    rows: dict[str, Any] = {"text": _named(request.text, "text"), "text_pair": pair}
    rows["max_length"] = note.max_length
    if note.range is None:
        rows |= {"labels": note.labels, "label": column or "label"}
        return validated(Classification, rows, source=options)
    low, high = note.range
    rows |= {"kind": note.task, "low": low, "high": high, "target": column or "target"}
    return validated(Regression, rows, source=options)


def _train(
    engine: OnnxEngine, origin: _Origin, rows: Examples, local: Local, on_step: OnStep
) -> Trained:
    """As a client trains, all slots at once. Raises DeliveryError `personal.diverged`."""
    steps = math.ceil(len(rows) / local.batch_size) * local.epochs
    steps = min(steps, local.max_steps) if local.max_steps else steps
    on_step(0, steps)
    try:
        return train(
            engine,
            origin.tensors,
            rows,
            local=local,
            parts=frozenset(spec.part for spec in engine.layout.specs),
            seed=seed_from("personal", len(rows)),
            on_step=lambda done: on_step(done, steps),
        )
    except UpdateError:
        raise _diverged("the loss is not finite") from None


def _encoded(rows: Rows, note: ReleaseNote, manifest: SortingManifest, base: Path) -> Examples:
    """What the base reads of the device's rows. Raises DataError."""
    if isinstance(manifest, MediaManifest):
        return encoded_files(rows, manifest)
    targets = np.array(rows.targets, OUTPUT_TASKS[note.task].TARGETS)
    return encode(
        open_tokenizer(base),
        rows.texts,
        targets,
        note.max_length,
        typed=note.pairs and TYPE_IDS in manifest.graph.inputs,
        boxed=manifest.boxed,
        place=rows.place,
    )


def _diverged(cause: str) -> DeliveryError:
    return DeliveryError("personal.diverged", cause, f"lower --rate; {STAYS}")


def _write(
    staged: Path,
    origin: _Origin,
    layout: Layout,
    tensors: Tensors,
    runtime: EdgeRuntime,
    held: Rows,
) -> float | None:
    """The adapter's two files, readable by this user alone; its quality on held-out rows.

    Its release.json is the origin's but for what is the adapter's own; no log has it, and `exchange` says so.
    """
    with writing(staged):
        write_edge_adapter(tensors, staged / EDGE_FILE)
    note = origin.note.model_copy(
        update={
            "adapter_digest": vector_digest(layout.flatten(tensors)),
            "exchange": "personal",
            "files": {EDGE_FILE: sha256_of(staged / EDGE_FILE)},
            "metrics": {},
            "program": "",
            "parity": None,
            "nested": False,  # all ranks are trained at once
        }
    )
    with writing(staged):
        write_whole(staged / RELEASE_FILE, render_release(note))
    after = None
    if len(held):
        try:
            _, after = calibrate_adapter(staged, runtime, held.questions(), held.targets)
        except ArtefactError as error:  # it was checked when the release was: the last step did it
            raise _diverged(error.cause) from None
    for name in (EDGE_FILE, RELEASE_FILE):
        (staged / name).chmod(PRIVATE)
    return after


def _described(
    staged: Path, origin: _Origin, data: _Data, after: float | None, now: datetime
) -> Personal:
    files = {name: sha256_of(staged / name) for name in (EDGE_FILE, RELEASE_FILE)}
    return Personal(
        id=files[RELEASE_FILE],
        origin=origin.id,
        adapter=Installed(seq=origin.seq, files=files),
        rows=len(data.kept),
        held_out=len(data.held),
        quality=TASKS[origin.note.task].QUALITY.name,
        before=data.before,
        after=after,
        time=int(now.timestamp()),
    )


def _verify_better(store: Store, personal: Personal, quality: Quality) -> None:
    """Its origin is still in use, and it is not worse. Raises DeliveryError."""
    if store.state.current != personal.origin:
        raise DeliveryError(
            "personal.overtaken",
            f"release {personal.adapter.seq} was replaced while it was adapted",
            "train again: from the release that is in use now",
        )
    before, after = personal.before, personal.after
    if before is None or after is None:
        return
    if quality.share(after) < quality.share(before):
        raise DeliveryError(
            "personal.worse",
            f"{quality.name} {after:.3f} on {personal.held_out} held-out rows, {before:.3f} before",
            f"lower --rate, fewer --epochs or more rows; --holdout 0 does not measure; {STAYS}",
        )
