"""A device adapts the release in use to rows of its own; rows and adapter stay on it. (docs/adr/0048)

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

from base_model.edge_adapter import write_edge_adapter
from base_model.programs.slots import slot_layout, slot_program
from base_model.verify import WEIGHTS, open_tokenizer, verify_base
from client.batches import encode, held_out
from client.data import Rows, load_rows
from client.engine.onnx_engine import OnnxEngine
from client.training import Trained, train
from edge_runtime import agent
from edge_runtime.adapter import read_tensors
from edge_runtime.base import check_file, read_manifest
from edge_runtime.calibrating import calibrate_adapter
from edge_runtime.files import write_whole
from edge_runtime.mapped_graph import open_device_base
from edge_runtime.runtime import EdgeRuntime
from edge_runtime.settings import Device
from edge_runtime.store import Installed, Personal, Store, read_state, release_folder
from protocol.encoding import seed_from, vector_digest
from protocol.errors import ArtefactError, DataError, DeliveryError, UpdateError
from protocol.layout import Layout, Tensors
from protocol.peft_format import EDGE_FILE, RELEASE_FILE, ReleaseNote, render_release
from protocol.plan_sections import Local, Task
from protocol.regular_files import sha256_of_regular

HOLDOUT, ENOUGH = 0.2, 20  # of so many rows a share is held out unless the user says otherwise
STAYS = "what answers stays as it is"
OnStep = Callable[[int, int], None]  # steps done, of all


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What to train on, and how. ``holdout``: share of rows to measure on, None where few rows have none."""

    data: Path
    text: str
    label: str
    local: Local
    holdout: float | None


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """What came of it; ``loss`` is the last epoch's mean cross-entropy in nats."""

    personal: Personal
    steps: int
    loss: float
    seconds: float

    def form(self) -> dict[str, Any]:
        """Plain values for people and programs."""
        one = self.personal
        share = (lambda right: right / one.held_out) if one.held_out else (lambda right: None)
        return {
            "personal": one.id,
            "release": one.adapter.seq,
            "rows": one.rows,
            "held_out": one.held_out,
            "accuracy_before": share(one.right_before),
            "accuracy_after": share(one.right),
            "loss": self.loss,
            "steps": self.steps,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """The release that is adapted, whatever a personal adapter was made of it before."""

    id: str
    seq: int
    folder: Path


def adapt(device: Device, wish: Wish, now: datetime, on_step: OnStep) -> Adapted:
    """Train from the release in use, measure, probe, and let the result answer in its place.

    Nothing is written before the training has ended. Raises DataError for rows that do not fit, DeliveryError
    `personal...` or `probe...` when the device does not take it, ArtefactError for a damaged or partial
    base: then what answers is what did before.
    """
    origin = _origin(device)
    manifest = _trainable(device.base)
    runtime = EdgeRuntime(open_device_base(device))
    note = runtime.activate(origin.folder).note
    kept, held = _rows(wish, note)
    right_before = _right(runtime, held)
    start = read_tensors(origin.folder / EDGE_FILE)
    layout = slot_layout(start)
    program = slot_program(device.base, manifest, layout)
    engine = OnnxEngine(program, device.base, layout, threads=device.threads)
    trained = _train(engine, start, kept, note, device.base, wish.local, on_step)
    with Store(device.store, wait_s=2 * device.deadline_s) as store:
        if store.state.current != origin.id:
            raise DeliveryError(
                "personal.overtaken",
                f"release {origin.seq} was replaced while it was adapted",
                "train again: from the release that is in use now",
            )
        made = store.new_personal()
        right = _write(made, trained.tensors, layout, note, runtime, held)
        if right < right_before:
            raise DeliveryError(
                "personal.worse",
                f"of {len(held)} held-out rows {right} are right, {right_before} were before",
                f"lower --rate, fewer --epochs or more rows; --holdout 0 does not measure; {STAYS}",
            )
        personal = Personal(
            id=sha256_of_regular(made / RELEASE_FILE),
            origin=origin.id,
            adapter=Installed(
                seq=origin.seq,
                files={n: sha256_of_regular(made / n) for n in (EDGE_FILE, RELEASE_FILE)},
            ),
            rows=len(kept),
            held_out=len(held),
            right_before=right_before,
            right=right,
            time=int(now.timestamp()),
        )
        agent.adopt(device, store, runtime.base, made, personal, now)
    loss = trained.loss_sum / trained.examples
    return Adapted(
        personal=personal, steps=trained.steps, loss=loss, seconds=round(trained.seconds, 3)
    )


def _origin(device: Device) -> _Origin:
    if not device.personal:
        raise DeliveryError(
            "personal.forbidden",
            f"the settings of {device.id} say `personal = false`: it runs what was delivered, no more",
            "ask whoever looks after this device",
        )
    state = read_state(device.store)
    if state.current is None:
        raise DeliveryError("store.unknown", "no release is in use", "`fedge edge update` first")
    folder, installed = release_folder(device.store, state.current), state.installed[state.current]
    for name, sha256 in installed.files.items():
        check_file(folder / name, sha256)
    return _Origin(id=state.current, seq=installed.seq, folder=folder)


def _trainable(base: Path) -> Any:
    """The manifest of a whole base: a device that only answers may lack the weights."""
    if not (base / WEIGHTS).is_file() and WEIGHTS in read_manifest(base).files:
        raise ArtefactError(
            f"{base / WEIGHTS} is missing: this device's base can answer, not train",
            f"copy this file of the base to the device; {STAYS}",
        )
    return verify_base(base)


def _rows(wish: Wish, note: ReleaseNote) -> tuple[Rows, Rows]:
    """(to train on, held out). Raises DataError."""
    task = Task(labels=note.labels, text=wish.text, label=wish.label, max_length=note.max_length)
    rows = load_rows(wish.data, task)
    share = (HOLDOUT if len(rows) >= ENOUGH else 0.0) if wish.holdout is None else wish.holdout
    out = int(len(rows) * share)
    if len(rows) - out < 1:
        raise DataError(f"{wish.data}: there are no rows to train on", "give it some")
    indices = held_out(len(rows), out, seed=seed_from("personal-holdout", len(rows)))
    kept, held = (
        Rows(texts=[rows.texts[i] for i in part], labels=[rows.labels[i] for i in part])
        for part in indices
    )
    return kept, held


def _right(runtime: EdgeRuntime, rows: Rows) -> int:
    return int((runtime.logits(rows.texts).argmax(-1) == np.asarray(rows.labels)).sum())


def _train(
    engine: OnnxEngine,
    start: Tensors,
    rows: Rows,
    note: ReleaseNote,
    base: Path,
    local: Local,
    on_step: OnStep,
) -> Trained:
    encoded = encode(open_tokenizer(base), rows.texts, rows.labels, note.max_length)
    steps = math.ceil(len(rows) / local.batch_size) * local.epochs
    steps = min(steps, local.max_steps) if local.max_steps else steps
    on_step(0, steps)
    try:
        trained = train(
            engine,
            start,
            encoded,
            local=local,
            roles=frozenset(spec.role for spec in engine.layout.specs),
            seed=seed_from("personal", len(rows)),
            on_step=lambda done: on_step(done, steps),
        )
    except UpdateError:
        trained = None
    # after the last step no loss was computed
    if trained is None or not all(np.isfinite(x).all() for x in trained.tensors.values()):
        raise DeliveryError("personal.diverged", "its loss is not finite", f"lower --rate; {STAYS}")
    return trained


def _write(
    made: Path,
    tensors: Tensors,
    layout: Layout,
    origin: ReleaseNote,
    runtime: EdgeRuntime,
    held: Rows,
) -> int:
    """The adapter's two files, readable by this user alone; how many held-out rows it gets right.

    Its release.json is the origin's but for what is the adapter's own; no log has it, and `exchange` says so.
    """
    write_edge_adapter(tensors, made / EDGE_FILE)
    note = origin.model_copy(
        update={
            "adapter_digest": vector_digest(layout.flatten(tensors)),
            "exchange": "personal",
            "files": {EDGE_FILE: sha256_of_regular(made / EDGE_FILE)},
            "metrics": {},
            "program": "",
            "parity": None,
        }
    )
    write_whole(made / RELEASE_FILE, render_release(note))
    right = 0
    if len(held):
        _, accuracy = calibrate_adapter(made, runtime, held.texts, held.labels)
        right = round(accuracy * len(held))
    for name in (EDGE_FILE, RELEASE_FILE):
        (made / name).chmod(0o600)
    return right
