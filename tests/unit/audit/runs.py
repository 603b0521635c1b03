"""Small whole runs: the real coordinator over sites that keep the protocol and send random updates.

No model is trained, so a run takes less than a second; everything that is published is the real thing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from audit.continued import start_of
from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import load_run
from client.ledger import FileLedger
from client.openings import FileOpenings
from client.receipts import Receipts
from client.secret import Member, first_digest
from protocol import PROTOCOL_VERSION, wire
from protocol.audio_manifest import FEATURES, AudioManifest
from protocol.decoder_manifest import (
    CHAT_TEMPLATE,
    DECODER,
    DecoderManifest,
    decoder_fingerprint_of,
)
from protocol.denoiser_manifest import (
    CLASSES,
    IMAGES,
    NOISE,
    STEPS,
    DenoiserManifest,
    drawn_pixels,
)
from protocol.encoding import seed_from
from protocol.errors import FedgeError
from protocol.exchange import Contribution, Phase
from protocol.exchange.plain import PlainClient
from protocol.forms import BOTTLENECK, SOFT_PROMPT
from protocol.image_manifest import PIXELS, ImageManifest
from protocol.manifest import (
    BOXES,
    DOCUMENTS,
    BaseManifest,
    FileEntry,
    Graph,
    Head,
    HeadManifest,
    Linear,
    Manifest,
    Slot,
    TensorEntry,
    TextManifest,
    fingerprint_of,
)
from protocol.manifests import AnyManifest, OfMedium
from protocol.media import DRAWN, IMAGE, MEDIA
from protocol.noise import Schedule
from protocol.plan import Plan, plan_from
from protocol.recipe import Recipe
from protocol.rows.measured import MeasuredRows
from protocol.secagg.session import Session
from protocol.seq2seq_manifest import SEQ2SEQ, TAG, Seq2SeqManifest
from protocol.transparency.leaf_codec import sha256
from protocol.waveform_manifest import MASK, VALUES, WaveformManifest
from server.coordinator import run_rounds
from server.store import RunStore
from server.witnessing import Witness
from simulations.clock import VirtualClock
from simulations.faults import Speeds
from simulations.grid import InProcessGrid

ONE_ROW = MeasuredRows(count=1, digest=sha256(b"\n"))  # that releases were measured on

Lost = Callable[[int, int, Phase, int], bool]  # round, attempt, phase, site
PLAN: dict[str, Any] = {
    "name": "small",
    "seed": 5,
    "rounds": 2,
    "task": {"labels": ["a", "b", "c"]},
    "adapter": {"rank": 2, "alpha": 4.0, "targets": ["query"]},
    "cohort": {"size": 6, "quorum": 3, "deadline_s": 30.0},
}


def nobody(number: int, attempt: int, phase: Phase, site: int) -> bool:
    """Whom this run loses."""
    return False


def small_slots(linears: int) -> list[Slot]:
    """Scales and shifts of the linears, and of one norm, and a soft prompt."""
    shapes = {f"m.{i}.query.{end}": 6 for i in range(linears) for end in ("scale", "shift")}
    shapes |= {"m.norm.scale": 5, "m.norm.shift": 5}
    sized = [Slot(name=name, dtype="float32", shape=[size]) for name, size in shapes.items()]
    return [*sized, Slot(name=SOFT_PROMPT, dtype="float32", shape=["prompt", 5])]


def small_manifest(linears: int = 2) -> Manifest:
    """A base that nobody needs to open: linears of 6 by 5."""
    listed = Manifest(
        fingerprint="a" * 64,
        source="none",
        task="sequence-classification",
        family="bert",
        pooling="mean",
        bits=4,
        block=32,
        hidden_size=5,
        embedding_size=5,
        layers=1,
        vocab_size=9,
        max_positions=128,
        embedding_std=0.05,
        parameters=1,
        linears=[
            Linear(path=f"m.{i}.query", in_features=5, out_features=6) for i in range(linears)
        ],
        head=Head(path="classifier", in_features=5, labels=2),
        graph=Graph(
            file="graph.onnx",
            opset=20,
            accuracy_level=0,
            inputs=["i"],
            output="logits",
            slots=small_slots(linears),
        ),
        tensors={"w": TensorEntry(dtype="float32", shape=[1], sha256="0" * 64)},
        files={
            name: FileEntry(sha256="0" * 64, bytes=1)
            for name in ("graph.onnx", "config.json", "tokenizer.json")
        },
        made_with={},
    )
    return listed.model_copy(update={"fingerprint": fingerprint_of(listed)})


def small_layered() -> Manifest:
    """The same with layers as families name their parts, and places for bottlenecks."""
    manifest = small_manifest(1)
    named = (
        ("attention.output.dense", "intermediate.dense", "output.dense"),
        ("attention.out_lin", "ffn.lin1", "ffn.lin2"),
        ("attention.attn.o", "intermediate.dense", "output.dense"),
        ("attention.dense", "ffn", "ffn_output"),
        (
            "attention.out_proj",
            "feed_forward.intermediate_dense",
            "feed_forward.output_dense",
        ),
    )
    sizes, slots = ((5, 5), (5, 7), (7, 5)), manifest.graph.slots
    linears = manifest.linears + [
        Linear(path=f"m.{i}.{path}", in_features=width, out_features=out)
        for i, paths in enumerate(named)
        for path, (width, out) in zip(paths, sizes, strict=True)
    ]
    for path in ("m.embeddings.word_embeddings", *(linear.path for linear in linears[1:])):
        width = f"w_{path}"
        shapes: tuple[list[int | str], ...] = ([5, width], [width], [width, 5])
        slots = slots + [
            Slot(name=path + end, dtype="float32", shape=shape)
            for end, shape in zip(BOTTLENECK, shapes, strict=True)
        ]
    graph = manifest.graph.model_copy(update={"slots": slots})
    return manifest.model_copy(update={"linears": linears, "graph": graph})


def small_documents(linears: int = 2) -> Manifest:
    """The same of a base of documents."""
    shared = small_manifest(linears)
    graph = shared.graph.model_copy(update={"inputs": [*shared.graph.inputs, BOXES]})
    own = {"task": DOCUMENTS, "family": "layoutlm", "pooling": "pooler", "graph": graph}
    return shared.model_copy(update=own).fingerprinted()


def small_denoiser(linears: int = 2) -> DenoiserManifest:
    """The same of a base that draws."""
    shared = small_manifest(linears)
    fields = {name: getattr(shared, name) for name in BaseManifest.model_fields}
    graph = shared.graph.model_copy(
        update={"inputs": [IMAGES, STEPS, CLASSES], "output": NOISE, "slots": []}
    )
    own = {
        **{"task": DRAWN.task, "family": "dit", "graph": graph, "classes": 5},
        "pixels": drawn_pixels(1, 8),
        "schedule": Schedule(steps=40, betas="linear", start=0.001, end=0.2),
    }
    return DenoiserManifest(**(fields | own)).fingerprinted()


def small_media(
    task: str, linears: int = 2, *, samples: bool = False
) -> OfMedium | DenoiserManifest:
    """The same of a base of images or sounds, or of one that hears ``samples`` of these, or draws."""
    if task == DRAWN.task:
        return small_denoiser(linears)
    shared = small_manifest(linears)
    fields = {name: getattr(shared, name) for name in HeadManifest.model_fields} | {"task": task}
    slots = [slot for slot in shared.graph.slots if slot.name != SOFT_PROMPT]
    if task == IMAGE.task:
        pixels = {
            **{"channels": 1, "resized": (9, 8), "resampling": "bicubic", "height": 8, "width": 8},
            **{"scale": 1 / 255, "mean": (0.25,), "std": (0.3,)},
        }
        graph = shared.graph.model_copy(update={"inputs": [PIXELS], "slots": slots})
        own = {"family": "vit", "pooling": "cls", "graph": graph, "pixels": pixels}
        return ImageManifest(**(fields | own)).fingerprinted()
    if samples:
        waveform = {
            **{"kind": "wav2vec2-samples", "rate": 8000, "seconds": 2},
            **{"normalised": True, "masked": True},
        }
        graph = shared.graph.model_copy(update={"inputs": [VALUES, MASK], "slots": slots})
        own = {
            "family": "wav2vec2",
            "pooling": "projected",
            "graph": graph,
            "waveform": waveform,
        }
        return WaveformManifest(**(fields | own)).fingerprinted()
    log_mel = {
        **{"kind": "whisper-log-mel", "rate": 8000, "seconds": 1, "window": 200, "hop": 80},
        **{"bands": 8, "frames": 100, "highest": 8000},
    }
    graph = shared.graph.model_copy(update={"inputs": [FEATURES], "slots": slots})
    own = {"family": "whisper", "pooling": "projected", "graph": graph, "log_mel": log_mel}
    return AudioManifest(**(fields | own)).fingerprinted()


def small_writing(linears: int = 2, *, task: str = DECODER) -> DecoderManifest | Seq2SeqManifest:
    """The same of a base that writes text, or turns one into another."""
    shared = small_manifest(linears)
    fields = {name: getattr(shared, name) for name in TextManifest.model_fields} | {
        "task": task,
        "embedding_bits": 8,
        "affine": True,
        "tied": True,
        "heads": 2,
        "kv_heads": 1,
        "head_size": 2,
        "ends": [2],
        "files": shared.files | {CHAT_TEMPLATE: FileEntry(sha256="1" * 64, bytes=1)},
    }
    if task == SEQ2SEQ:
        reader = shared.graph.model_copy(update={"file": "encoder.onnx", "slots": []})
        fields["files"] |= {"encoder.onnx": FileEntry(sha256="2" * 64, bytes=1)}
        apart = {"encoder": reader, "encoder_layers": 1, "start": 0, "padding": 0}
        listed: DecoderManifest | Seq2SeqManifest = Seq2SeqManifest(**fields, **apart)
        return listed.model_copy(update={"fingerprint": decoder_fingerprint_of(listed, tag=TAG)})
    listed = DecoderManifest(**fields, begin=None)
    return listed.model_copy(update={"fingerprint": decoder_fingerprint_of(listed)})


class Sites:
    """Named sites with keys; each has its own ledger and memory in ``folder``."""

    def __init__(
        self,
        plan: Plan,
        manifest: AnyManifest,
        folder: Path,
        count: int,
        keys: Sequence[Ed25519PrivateKey] | None = None,
    ) -> None:
        self.plan, self.manifest, self.folder = plan, manifest, folder
        self.keys = list(keys or [Ed25519PrivateKey.generate() for _ in range(count)])
        self.roster = {
            _name(site): key.public_key().public_bytes_raw() for site, key in enumerate(self.keys)
        }
        self.lost: Lost = nobody
        self.member: type[Member] = Member
        self.sessions: dict[int, Session | None] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def app(self) -> ClientApp:
        app = ClientApp()

        @app.query("hello")
        def hello(message: Message, context: Context) -> Message:
            said = wire.Hello(
                client=_name(int(context.node_config["partition-id"])),
                base=self.manifest.fingerprint,
                protocol=PROTOCOL_VERSION,
            )
            content = {wire.REPLY: ConfigRecord(wire.to_record(said))}
            return Message(RecordDict(content), reply_to=message)

        for phase in Phase:
            app.train(phase.value)(self._answerer(phase))
        return app

    def _answerer(self, phase: Phase) -> Callable[[Message, Context], Message]:
        def answer(message: Message, context: Context) -> Message:
            site = int(context.node_config["partition-id"])
            content = message.content
            told = wire.from_record(
                wire.Instruction, dict(content.config_records[wire.INSTRUCTION])
            )
            if self.lost(told.round, told.attempt, phase, site):
                raise RuntimeError("gone")
            if wire.SECAGG in content.array_records:
                try:
                    reply = self._secret(phase, site, told, content)
                except FedgeError as error:  # as the product's client: a refusal is a reply
                    return refused(message, error)
            else:
                reply = PlainClient().mask(self._contribution(site, told.round))
            made = ArrayRecord({"masked": Array(np.frombuffer(reply, np.uint8))})
            given = RecordDict({wire.MASKED: made})
            if phase in (Phase.ADVERTISE, Phase.UNMASK):
                session = self.sessions[site]
                assert session is not None
                text = wire.LogText(text=self.receipts(site).told(session.sid).encode())
                given[wire.LOG] = ConfigRecord(wire.to_record(text))
            return Message(given, reply_to=message)

        return answer

    def receipts(self, site: int) -> Receipts:
        return Receipts(self.folder / f"{site}.receipts.jsonl")

    def _secret(
        self, phase: Phase, site: int, told: wire.Instruction, content: RecordDict
    ) -> bytes:
        data = content.array_records[wire.SECAGG]["message"].numpy().tobytes()
        member = self.member(
            name=_name(site),
            key=self.keys[site],
            roster=self.roster,
            plan=self.plan,
            size=self._size(told.round),
            random=os.urandom,
            ledger=FileLedger(self.folder / f"{site}.jsonl"),
            openings=FileOpenings(self.folder / f"{site}.openings.jsonl"),
            receipts=self.receipts(site),
            first=lambda: first_digest(Recipe(plan=self.plan, manifest=self.manifest)),
        )
        log_text = content.config_records.get(wire.LOG)
        self.sessions[site], reply = member.answer(
            phase,
            data,
            told,
            self.sessions.get(site),
            lambda: self._contribution(site, told.round),
            None if log_text is None else str(log_text["text"]),
        )
        return reply

    def _size(self, number: int) -> int:
        return Recipe(plan=self.plan, manifest=self.manifest).round_layout(number).size

    def _contribution(self, site: int, number: int) -> Contribution:
        rng = np.random.default_rng(seed_from(site, self.plan.turn(number)))
        update = rng.normal(0, 0.1, self._size(number)).astype(np.float32)
        metrics = {name: float(1 + site) for name in self.plan.task.METRICS}
        return Contribution(update=update, weight=1, metrics=metrics)


def small_plan(
    linears: int = 2, *, samples: bool = False, **sections: Any
) -> tuple[Plan, AnyManifest]:
    """A plan and its base, of sounds one that hears ``samples``; ``sections`` beside :data:`PLAN`."""
    task = sections.get("task", {}).get("kind", "")
    writes = task in (DECODER, SEQ2SEQ)
    manifest: AnyManifest = small_writing(linears, task=task) if writes else small_manifest(linears)
    if task in MEDIA:
        manifest = small_media(task, linears, samples=samples)
    if task == DOCUMENTS:
        manifest = small_documents(linears)
    if sections.get("adapter", {}).get("method") == "bottleneck":
        manifest = small_layered()
    named = sections.get("base", {}) | {"fingerprint": manifest.fingerprint}
    document = PLAN | sections | {"base": named}
    return plan_from(document, source="test"), manifest


def make_run(
    folder: Path,
    *,
    count: int = 6,
    lost: Lost = nobody,
    linears: int = 2,
    samples: bool = False,
    sites: Sites | None = None,
    log_key: Ed25519PrivateKey | None = None,
    witnesses: Sequence[Witness] = (),
    begin: Path | None = None,
    speeds: Speeds | None = None,
    **sections: Any,
) -> Path:
    """A whole run in ``folder``; ``sections`` are the plan's, beside :data:`PLAN`.

    ``speeds``: of the sites, by the names that simulated clients have.
    """
    plan, manifest = small_plan(linears, samples=samples, **sections)
    sites = sites or Sites(plan, manifest, folder.parent / f"{folder.name}-sites", count)
    sites.lost = lost
    clock = VirtualClock()
    store = RunStore(folder)
    try:
        run_rounds(
            plan=plan,
            manifest=manifest,
            grid=InProcessGrid(sites.app(), count, clock=clock, deadline_s=30.0, speeds=speeds),
            store=store,
            clock=clock,
            roster_keys=sites.roster if plan.secrecy.exchange == "secagg" else None,
            log_key=log_key,
            witnesses=witnesses,
            start=begin,
        )
    finally:
        store.close()
    return folder


def go_on(
    before: Path, folder: Path, *, number: int | None = None, count: int = 6, **sections: Any
) -> Path:
    """A run in ``folder`` from the adapter of round ``number`` (the last) of ``before``, at new sites."""
    run = load_run(Folder(before), Trust())
    number = run.log.rounds[-1].number if number is None else number
    start = start_of(run, number).model_dump(mode="json")
    place = before / "rounds" / f"{number:04d}" / "adapter"
    return make_run(folder, count=count, begin=place, **(sections | {"start": start}))


def refused(message: Message, error: FedgeError) -> Message:
    kind = type(error).__name__
    refusal = wire.Refusal(kind=kind, cause=error.cause, remedy=error.remedy)
    content = {wire.REPLY: ConfigRecord(wire.to_record(refusal))}
    return Message(RecordDict(content), reply_to=message)


def _name(site: int) -> str:
    return f"site-{site}"
