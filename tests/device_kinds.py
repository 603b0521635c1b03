"""A base of every kind that devices run, each with releases that its own rows tell apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.backends.drawing import open_drawing
from edge_runtime.backends.encoder import open_encoder
from edge_runtime.backends.writing import WritingBackend, open_writing
from edge_runtime.base import read_any_manifest
from edge_runtime.decoder.chat import chat_prompt
from edge_runtime.decoder.generation import Request
from edge_runtime.edge_adapter import write_edge_adapter
from edge_runtime.probe import Probe
from protocol.chat.messages import chat_from
from protocol.layout import Tensors
from protocol.media import MEDIA
from protocol.peft_format import EDGE_FILE, RELEASE_FILE, ReleaseNote, render_release
from protocol.rows.media import codec_of, read_file
from tests.delivery_world import World
from tests.tiny_decoder import lora, write_tiny_decoder

BY_DEFAULT = ("encoder", "images", "decoder", "seq2seq")  # the others are for `make test-bases`
KINDS = ("encoder", "images", "sounds", "samples", "documents", "drawings", "decoder", "seq2seq")
SORTS = {
    "encoder": "text",
    "images": "image",
    "sounds": "sound",
    "samples": "sound",
    "documents": "page",
    "drawings": "step",
}  # with labels, and of what a latency is measured
TOKENS = 12


@dataclass(frozen=True, kw_only=True)
class DeviceKind:
    """``rows`` are what ``adapters["good"]`` gets right and ``adapters["bad"]`` does not."""

    name: str
    base: Path
    adapters: dict[str, Path]
    rows: Sequence[Mapping[str, Any]]
    probe_settings: Mapping[str, Any] = field(default_factory=dict)

    def world(self, folder: Path) -> World:
        return World.make(folder, self.base, self.adapters, self.rows, **self.probe_settings)

    def probe(self, **other: Any) -> Probe:
        limits = {"least_correct": len(self.rows), "most_latency_ms": 5000, "most_memory_mb": 500}
        return Probe.model_validate({"rows": self.rows, **limits, **self.probe_settings, **other})


def released_text(folder: Path, base: Path, tensors: Tensors) -> Path:
    """The files of a release of a base that writes text, but for the passport."""
    folder.mkdir(parents=True)
    write_edge_adapter(tensors, folder / EDGE_FILE)
    manifest = read_any_manifest(base)
    note = ReleaseNote(
        plan_name="tests",
        plan_digest="0" * 64,
        base_fingerprint=manifest.fingerprint,
        round=1,
        adapter_digest="0" * 64,
        task=str(manifest.task),
        labels=[],
        max_length=16,
        exchange="plain",
        files={EDGE_FILE: hashlib.sha256((folder / EDGE_FILE).read_bytes()).hexdigest()},
        metrics={},
    )
    (folder / RELEASE_FILE).write_bytes(render_release(note))
    return folder


def changed_note(folder: Path, **fields: Any) -> None:
    """``release.json`` of a folder with other values."""
    note = json.loads((folder / RELEASE_FILE).read_text())
    (folder / RELEASE_FILE).write_text(json.dumps(note | fields))


def overwritten(folder: Path, tensors: Tensors) -> None:
    """Another adapter, of which ``release.json`` has the digest."""
    write_edge_adapter(tensors, folder / EDGE_FILE)
    digest = hashlib.sha256((folder / EDGE_FILE).read_bytes()).hexdigest()
    changed_note(folder, files={EDGE_FILE: digest})


def tokens_under(
    backend: WritingBackend, folder: Path, prompt: Sequence[int], count: int = TOKENS
) -> tuple[list[int], str]:
    """What is written under a release: its likeliest tokens, and their text."""
    steps = backend.writer.text(prompt, Request(max_tokens=count), backend.load(folder)).steps
    written = [step for step in steps if step is not None]
    return [step.token for step in written], "".join(step.text for step in written)


def told_apart(base: Path, good: Path, bad: Path, words: Sequence[str]) -> list[dict[str, Any]]:
    """Texts, and of a base with a template a chat, with what ``good`` writes and ``bad`` does not."""
    backend = open_writing(base, threads=1)
    asked = [({"text": word}, backend.writer.base.prompt(word)) for word in words]
    if getattr(backend.writer.base, "template", None):
        messages = [{"role": "user", "content": words[0]}]
        chat = chat_prompt(backend.writer.base, chat_from(messages))
        asked.insert(0, ({"messages": messages}, chat))
    rows = []
    for row, prompt in asked:
        (_, meant), (_, other) = (tokens_under(backend, one, prompt) for one in (good, bad))
        if len(meant) > 3 and meant not in other:
            rows.append({**row, "contains": meant})
    assert len(rows) >= 3
    return rows[:3]


def images_kind(folder: Path, base: Path, write_adapter: Callable[..., Path]) -> DeviceKind:
    """On a base of images; rows are files that two releases sort otherwise."""
    from tests.image_models import LABELS, write_images

    task = {"kind": "image-classification", "labels": LABELS}
    return _files_kind("images", folder, base, write_adapter, task, write_images)


def sounds_kind(folder: Path, base: Path, write_adapter: Callable[..., Path]) -> DeviceKind:
    """The same on a base of sounds."""
    from tests.sound_models import LABELS, write_sounds

    task = {"kind": "audio-classification", "labels": LABELS}
    return _files_kind("sounds", folder, base, write_adapter, task, write_sounds)


def samples_kind(folder: Path, base: Path, write_adapter: Callable[..., Path]) -> DeviceKind:
    """The same on one that hears samples."""
    from tests.sound_models import LABELS, write_sounds

    task = {"kind": "audio-classification", "labels": LABELS}
    return _files_kind("samples", folder, base, write_adapter, task, write_sounds)


def documents_kind(folder: Path, base: Path, write_adapter: Callable[..., Path]) -> DeviceKind:
    """The same on a base of documents; rows are pages."""
    from tests.page_models import LABELS, pages, row_of

    several = pages(24, seed=1)
    task = {"kind": "document-classification", "labels": LABELS, "max_length": 16}
    adapters, said = _two_releases(folder, base, write_adapter, task, several)
    rows = [
        row_of(page, meant)
        for page, meant, other in zip(several, *said, strict=True)
        if meant != other
    ]
    assert len(rows) >= 4
    return DeviceKind(name="documents", base=base, adapters=adapters, rows=rows[:4])


def _two_releases(
    folder: Path,
    base: Path,
    write_adapter: Callable[..., Path],
    task: dict[str, Any],
    questions: list[Any],
) -> tuple[dict[str, Path], list[list[Any]]]:
    """Adapters that were released, and what each answers."""
    from base_model.release import release_adapter

    backend, said, adapters = open_encoder(base, threads=1), [], {}
    for seed, name in enumerate(("good", "bad"), 1):
        adapters[name] = write_adapter(folder / name, base=base, task=task, seed=seed)
        release_adapter(adapters[name], base, texts=questions[:4], bound=1e-4)
        loaded = backend.load(adapters[name])
        said.append([answer.answer for answer in backend.runtime.infer(questions, loaded)])
    return adapters, said


def _files_kind(
    kind: str,
    folder: Path,
    base: Path,
    write_adapter: Callable[..., Path],
    task: dict[str, Any],
    write: Callable[..., list[Path]],
) -> DeviceKind:
    files = write(folder / kind, 24, seed=1)
    adapters, said = _two_releases(folder, base, write_adapter, task, list(files))
    column = MEDIA[task["kind"]].column
    rows = [
        {column: str(file), "label": meant}
        for file, meant, other in zip(files, *said, strict=True)
        if meant != other
    ]
    assert len(rows) >= 4
    return DeviceKind(name=kind, base=base, adapters=adapters, rows=rows[:4])


def drawings_kind(folder: Path, base: Path, write_adapter: Callable[..., Path]) -> DeviceKind:
    """On a base that draws; rows are images on which one release finds more of the noise."""
    from base_model.release import release_adapter
    from tests.denoiser_models import LABELS, write_drawings

    files, backend = write_drawings(folder / "drawings", 4, seed=1), open_drawing(base, threads=1)
    task, adapters, errors = {"kind": "image-generation", "labels": LABELS}, {}, {}
    codec = codec_of(backend.base.manifest)
    for name, seed, deviation in (("good", 1, 0.01), ("bad", 2, 1.0)):
        adapters[name] = write_adapter(
            folder / name, base=base, task=task, seed=seed, deviation=deviation
        )
        release_adapter(adapters[name], base, texts=files, bound=1e-4)
        loaded = backend.load(adapters[name])
        errors[name] = [
            backend.errors(loaded, read_file(file, codec, place="a test"), at % len(LABELS)).mean()
            for at, file in enumerate(files)
        ]
    between = float(max(errors["good"]) + min(errors["bad"])) / 2
    assert 1.02 * max(errors["good"]) < between
    rows = [
        {"image": str(file), "label": LABELS[at % len(LABELS)]} for at, file in enumerate(files)
    ]
    settings = {"most_error": between}
    return DeviceKind(
        name="drawings", base=base, adapters=adapters, rows=rows, probe_settings=settings
    )


def decoder_kind(folder: Path) -> DeviceKind:
    base = write_tiny_decoder(folder / "tiny")
    adapters = {
        name: released_text(folder / name, base, lora(seed))
        for name, seed in (("good", 2), ("bad", 3))
    }
    rows = told_apart(base, adapters["good"], adapters["bad"], ["hi", "hello", "rain", "stop"])
    settings = {"max_tokens": TOKENS}
    return DeviceKind(
        name="decoder", base=base, adapters=adapters, rows=rows, probe_settings=settings
    )


def seq2seq_kind(folder: Path) -> DeviceKind:
    from base_model.seq2seq.build import build_seq2seq
    from base_model.seq2seq.folder import seq2seq_source
    from tests.unit.base_model.seq2seq.models import write_model
    from tests.unit.base_model.sources import WORDS_64

    base = folder / "base"
    build_seq2seq(seq2seq_source(str(write_model(folder / "source"))), bits=4, out=base, context=24)
    linears = read_any_manifest(base).linears
    adapters = {}
    for name, seed in (("good", 1), ("bad", 2)):
        rng, tensors = np.random.default_rng(seed), Tensors()
        for linear in linears:
            tensors[f"{linear.path}.lora_A"] = rng.normal(0, 0.3, (linear.in_features, 2))
            tensors[f"{linear.path}.lora_B"] = rng.normal(0, 0.3, (2, linear.out_features))
        narrow = {key: value.astype(np.float32) for key, value in tensors.items()}
        adapters[name] = released_text(folder / name, base, narrow)
    rows = told_apart(base, adapters["good"], adapters["bad"], WORDS_64[:12])
    settings = {"max_tokens": TOKENS}
    return DeviceKind(
        name="seq2seq", base=base, adapters=adapters, rows=rows, probe_settings=settings
    )
