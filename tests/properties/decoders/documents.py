"""Decoders, by house. Plans, manifests, rosters, checkpoints and ledgers."""

from __future__ import annotations

import json
from typing import Any

from base_model.gguf.read import read_gguf
from base_model.programs.document import (
    GraphEntry,
    ProgramDocument,
    TensorRule,
    parse_program,
)
from edge_runtime.base import read_manifest
from protocol.audio_manifest import AudioManifest, parse_audio_manifest
from protocol.chunks import CHUNKS, chunks_of, parse_chunks
from protocol.decoder_manifest import (
    DecoderManifest,
    decoder_fingerprint_of,
    parse_decoder_manifest,
)
from protocol.documents import parse_json, parse_toml
from protocol.encoding import parse_canonical
from protocol.image_manifest import ImageManifest, parse_image_manifest
from protocol.manifest import FileEntry, parse_manifest
from protocol.media import IMAGE, SOUND
from protocol.plan import parse_plan, plan_from_text
from protocol.privacy.ledger import parse_entries
from protocol.recipe import Recipe
from protocol.secagg.roster import parse_roster
from protocol.seq2seq_manifest import TAG, Seq2SeqManifest, parse_seq2seq_manifest
from protocol.step.checkpoint import decode_checkpoint
from protocol.tensor_file import decode_tensors
from protocol.transparency.policy import policy_of
from protocol.waveform_manifest import WaveformManifest, parse_waveform_manifest
from simulations.experiment import experiment_path, load_experiment
from tests.properties.decoders.rows import (
    Decoder,
    json_line,
    of_file,
    of_text,
    refusing,
)
from tests.properties.decoders.sounds import SAMPLES_OF_TESTS, SOUNDS_OF_TESTS
from tests.properties.decoders.world import ENTRY, World
from tests.unit.audit.small_bases import small_documents
from tests.unit.base_model.gguf.files import write_gguf


def program_document() -> bytes:
    """``program.json`` of a head alone."""
    graph = GraphEntry(
        sha256="0" * 64, bytes=9, parts=["head"], inputs=["labels"], outputs=["loss"]
    )
    return ProgramDocument(
        base="1" * 64,
        task="sequence-classification",
        method="lora",
        constants={"scaling": 2.0},
        pairs=False,
        opset=21,
        weights=FileEntry(sha256="2" * 64, bytes=5),
        tensors=[TensorRule(name="classifier.bias", part="head", shape=["labels"])],
        graphs={"train-head.onnx": graph},
    ).render()


def toml_plan(fingerprint: str) -> bytes:
    return (
        'format = 2\nname = "small"\nseed = 5\nrounds = 2\n'
        f'[base]\nfingerprint = "{fingerprint}"\n'
        '[task]\nlabels = ["a", "b"]\n[adapter]\nrank = 2\nalpha = 4.0\ntargets = ["query"]\n'
        "[cohort]\nsize = 6\nquorum = 3\ndeadline_s = 30.0\n"
    ).encode()


def hybrid_plan(world: World) -> bytes:
    """A table of which each member is told apart by a key of its own."""
    members = [{"method": "lora", "rank": 2, "targets": ["query"]}, {"method": "prompt"}]
    document = json.loads(world.bytes("plan.json"))
    document["adapter"] = {"method": "hybrid", "members": members}
    return json.dumps(document).encode()


def documents(world: World) -> dict[str, Decoder]:
    return _plans(world) | _bases(world) | _run_files(world) | _plain_values(world)


def _plans(world: World) -> dict[str, Decoder]:
    manifest, plan = world.bytes("manifest.json"), world.bytes("plan.json")
    toml = toml_plan(world.plan.base.fingerprint)
    experiment = experiment_path("demo").read_bytes()

    def used(text: str) -> object:
        """A plan is worth nothing before its digest, its policy and its layout."""
        parsed = plan_from_text(text, source="plan.json")
        _ = parsed.digest
        if parsed.witnessed:
            policy_of(parsed.audit)
        return Recipe(plan=parsed, manifest=parse_manifest(manifest.decode(), source="m")).layout

    return {
        "protocol.plan:plan_from_text": Decoder(
            read=of_text(used), seeds=(plan, hybrid_plan(world))
        ),
        "protocol.plan:parse_plan": Decoder(
            read=of_text(lambda text: parse_plan(text, source="plan.toml")), seeds=(toml,)
        ),
        "simulations.experiment:load_experiment": Decoder(
            read=of_file(world.folder / "x.toml", load_experiment), seeds=(experiment,)
        ),
    }


def _bases(world: World) -> dict[str, Decoder]:
    manifest, base = world.bytes("manifest.json"), world.folder / "base"
    pieces = chunks_of({"w.bin": [b"x" * 2**20, b"y"]})
    covered = {
        "w.bin": FileEntry(sha256="0" * 64, bytes=2**20 + 1),
        CHUNKS: FileEntry(sha256="0" * 64, bytes=1),
    }
    return {
        "protocol.manifest:parse_manifest": Decoder(
            read=of_text(lambda text: parse_manifest(text, source="m")),
            seeds=(manifest, small_documents().to_json().encode()),
        ),
        "base_model.gguf.read:read_gguf": Decoder(
            read=of_file(world.folder / "m.gguf", read_gguf),
            seeds=(write_gguf(world.folder / "seed.gguf").read_bytes(),),
        ),
        "protocol.decoder_manifest:parse_decoder_manifest": Decoder(
            read=of_text(lambda text: parse_decoder_manifest(text, source="m")),
            seeds=(decoder_manifest(json.loads(manifest)).encode(),),
        ),
        "protocol.seq2seq_manifest:parse_seq2seq_manifest": Decoder(
            read=of_text(lambda text: parse_seq2seq_manifest(text, source="m")),
            seeds=(seq2seq_manifest(json.loads(manifest)).encode(),),
        ),
        "protocol.image_manifest:parse_image_manifest": Decoder(
            read=of_text(lambda text: parse_image_manifest(text, source="m")),
            seeds=(image_manifest(json.loads(manifest)).encode(),),
        ),
        "protocol.audio_manifest:parse_audio_manifest": Decoder(
            read=of_text(lambda text: parse_audio_manifest(text, source="m")),
            seeds=(audio_manifest(json.loads(manifest)).encode(),),
        ),
        "protocol.waveform_manifest:parse_waveform_manifest": Decoder(
            read=of_text(lambda text: parse_waveform_manifest(text, source="m")),
            seeds=(waveform_manifest(json.loads(manifest)).encode(),),
        ),
        "edge_runtime.base:read_manifest": Decoder(
            read=of_file(base / "manifest.json", lambda path: read_manifest(path.parent)),
            seeds=(manifest,),
        ),
        "base_model.programs.document:parse_program": Decoder(
            read=lambda data: parse_program(data, source="p"), seeds=(program_document(),)
        ),
        "protocol.chunks:parse_chunks": Decoder(
            read=lambda data: parse_chunks(data, covered, source="c"),
            seeds=(pieces.to_json().encode(),),
        ),
    }


def _run_files(world: World) -> dict[str, Decoder]:
    roster = next((world.run / "rosters").iterdir()).read_bytes()
    checkpoint = world.bytes("rounds/0001/checkpoint.safetensors")
    return {
        "protocol.secagg.roster:parse_roster": Decoder(
            read=of_text(lambda text: parse_roster(text, source="r")), seeds=(roster,)
        ),
        "protocol.step.checkpoint:decode_checkpoint": Decoder(
            read=lambda data: decode_checkpoint(data, source="c"),
            seeds=(checkpoint,),
        ),
        "protocol.tensor_file:decode_tensors": Decoder(
            read=lambda data: decode_tensors(data, source="t"),
            seeds=(world.bytes("rounds/0001/adapter/adapter_model.safetensors"),),
        ),
        "protocol.privacy.ledger:parse_entries": Decoder(
            read=of_text(lambda text: [e.spent for e in parse_entries(text, source="l")]),
            seeds=(json_line(ENTRY) * 2,),
        ),
    }


def _plain_values(world: World) -> dict[str, Decoder]:
    toml = toml_plan(world.plan.base.fingerprint)
    return {
        "protocol.documents:parse_json": Decoder(
            read=refusing(parse_json), seeds=(b'{"a": [1, "x", null, 1.5]}',)
        ),
        "protocol.documents:parse_toml": Decoder(read=refusing(parse_toml), seeds=(toml,)),
        "protocol.encoding:parse_canonical": Decoder(
            read=refusing(parse_canonical, ValueError), seeds=(b'{"a":[1,"x",null]}',)
        ),
    }


def seq2seq_manifest(encoder: dict[str, Any]) -> str:
    """An encoder's with a decoder, with files and tensors as an encoder's alone lists them."""
    fields = Seq2SeqManifest.model_fields
    shared = {key: value for key, value in encoder.items() if key in fields}
    own = {
        **{"format": 1, "task": "seq2seq-lm", "embedding_bits": 8, "affine": False, "tied": True},
        **{"heads": 4, "kv_heads": 4, "head_size": 8, "start": 0, "padding": 0, "ends": [1]},
        **{"encoder_layers": 2, "encoder": encoder["graph"]},
        "graph": encoder["graph"] | {"file": "tokenizer.json", "slots": []},
    }
    manifest = Seq2SeqManifest.model_validate(shared | own)
    fingerprint = decoder_fingerprint_of(manifest, tag=TAG)
    return manifest.model_copy(update={"fingerprint": fingerprint}).to_json()


def image_manifest(encoder: dict[str, Any]) -> str:
    """One of images, with files and tensors as an encoder's lists them."""
    shared = {key: value for key, value in encoder.items() if key in ImageManifest.model_fields}
    pixels = {
        **{"channels": 1, "resized": (8, 8), "resampling": "bilinear", "height": 8, "width": 8},
        **{"scale": 1 / 255, "mean": (0.5,), "std": (0.5,)},
    }
    graph = encoder["graph"] | {"inputs": ["pixel_values"]}
    own = {"format": 1, "task": IMAGE.task, "pooling": "cls", "pixels": pixels, "graph": graph}
    manifest = ImageManifest.model_validate(shared | own)
    return manifest.fingerprinted().to_json()


def audio_manifest(encoder: dict[str, Any]) -> str:
    """One of sounds, with files and tensors as an encoder's lists them."""
    shared = {key: value for key, value in encoder.items() if key in AudioManifest.model_fields}
    graph = encoder["graph"] | {"inputs": ["input_features"]}
    own = {"format": 1, "task": SOUND.task, "pooling": "mean", "graph": graph}
    log_mel = SOUNDS_OF_TESTS.model_dump()
    return (
        AudioManifest.model_validate(shared | own | {"log_mel": log_mel}).fingerprinted().to_json()
    )


def waveform_manifest(encoder: dict[str, Any]) -> str:
    """One that hears samples of sounds."""
    shared = {k: value for k, value in encoder.items() if k in WaveformManifest.model_fields}
    graph = encoder["graph"] | {"inputs": ["input_values", "attention_mask"]}
    own = {"format": 1, "task": SOUND.task, "pooling": "mean", "graph": graph}
    waveform = SAMPLES_OF_TESTS.model_dump()
    return (
        WaveformManifest.model_validate(shared | own | {"waveform": waveform})
        .fingerprinted()
        .to_json()
    )


def decoder_manifest(encoder: dict[str, Any]) -> str:
    """A decoder's, with files and tensors as an encoder's lists them."""
    shared = {key: value for key, value in encoder.items() if key in DecoderManifest.model_fields}
    own = {
        **{"format": 1, "task": "causal-lm", "embedding_bits": 8, "affine": False, "tied": True},
        **{"heads": 4, "kv_heads": 2, "head_size": 8, "begin": 1, "ends": [2]},
    }
    manifest = DecoderManifest.model_validate(shared | own)
    return manifest.model_copy(update={"fingerprint": decoder_fingerprint_of(manifest)}).to_json()
