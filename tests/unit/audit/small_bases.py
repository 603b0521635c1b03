"""Manifests of bases that nobody needs to open: of each kind one, with linears of 6 by 5."""

from __future__ import annotations

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
from protocol.manifests import OfMedium
from protocol.media import DRAWN, IMAGE
from protocol.noise import Schedule
from protocol.seq2seq_manifest import SEQ2SEQ, TAG, Seq2SeqManifest
from protocol.waveform_manifest import MASK, VALUES, WaveformManifest


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
