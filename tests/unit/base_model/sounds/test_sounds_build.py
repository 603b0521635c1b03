"""Bases of sounds against transformers' own model, and sources that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoFeatureExtractor, WhisperForAudioClassification
from typer.testing import CliRunner

from base_model.commands import app
from base_model.media_read import task_of_folder
from base_model.media_store import open_media
from base_model.programs.checks import OPERATORS
from base_model.programs.folder import make_program
from base_model.slot_check import verify_slots
from base_model.sounds.build import build_sounds
from base_model.sounds.families import REFUSED
from base_model.sounds.preprocessing import read_preprocessing
from base_model.sounds.source import load_sounds
from base_model.verify import read_manifest, verify_base
from edge_runtime.base import EdgeBase
from edge_runtime.runtime import EdgeRuntime
from protocol.audio_manifest import AudioManifest, parse_audio_manifest
from protocol.errors import ArtefactError, PlanError
from protocol.recipe import Recipe
from protocol.rows.media import read_inputs
from protocol.rows.sounds import SoundCodec, read_wav
from tests.sound_models import (
    BANDS,
    HOP,
    LABELS,
    RATE,
    preprocessing,
    write_sounds,
    write_sounds_source,
)
from tests.tiers import one_by_default
from tests.unit.client.test_sounds import plan_of

FRAMES = RATE // HOP


@pytest.fixture(scope="module")
def source(tiny_sounds: Path) -> Path:
    """What ``tiny_sounds`` was built from."""
    return tiny_sounds.parent / "source"


@pytest.mark.parametrize("bits", one_by_default(4, (4, 8, 16, 32)))
def test_a_base_answers_as_transformers_own_class(
    tiny_sounds: Path, source: Path, tmp_path: Path, bits: int
) -> None:
    """With the source's head and its labels' names, on the values that the codes stand for."""
    base = tiny_sounds if bits == 4 else tmp_path / "base"
    if bits != 4:
        build_sounds(str(source), bits=bits, out=base, scales=True)
    manifest = verify_base(base)
    assert isinstance(manifest, AudioManifest)
    assert (manifest.pooling, manifest.head.in_features) == ("projected", 24)
    verify_slots(base, manifest)
    sounds = write_sounds(tmp_path / "sounds", 6)
    own = WhisperForAudioClassification.from_pretrained(source).eval()
    opened = open_media(base)
    for linear in manifest.linears:
        weight = opened.model.get_submodule(linear.path).weight
        own.get_submodule(linear.path).weight.data = torch.as_tensor(weight).detach().clone()
    heard = torch.from_numpy(read_inputs(sounds, SoundCodec(manifest.log_mel))["input_features"])
    with torch.no_grad():
        expected = own(heard).logits.numpy()
        found = opened.model(input_features=heard).logits.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    runtime = EdgeRuntime(EdgeBase.open(base, threads=1))
    answers = runtime.logits(sounds)
    assert np.abs(answers - expected).max() <= 1e-4 * np.abs(expected).max()
    said = [answer.answer for answer in runtime.infer(sounds)]
    assert said == [LABELS[index] for index in expected.argmax(-1)]
    assert len(set(said)) > 1


def test_the_graph_has_operators_of_programs_alone(tiny_sounds: Path) -> None:
    graph = onnx.load(str(tiny_sounds / "graph.onnx")).graph
    assert {(node.domain, node.op_type) for node in graph.node} <= OPERATORS
    assert [v.name for v in graph.input if v.name not in {i.name for i in graph.initializer}] == [
        "input_features"
    ]


def test_a_program_holds_no_weights_of_its_own(tiny_sounds: Path) -> None:
    """Convolutions and positions lie in the base's file: of large models they exceed what a program may hold."""
    recipe = Recipe(plan=plan_of(tiny_sounds), manifest=read_manifest(tiny_sounds))
    for data in make_program(tiny_sounds, recipe).graphs.values():
        held = onnx.load_model_from_string(data).graph.initializer
        outside = {t.name for t in held if t.data_location == onnx.TensorProto.EXTERNAL}
        assert len([name for name in outside if "conv" in name and "weight" in name]) == 2
        assert len([name for name in outside if "embed_positions" in name]) == 1
        assert max(len(t.raw_data) for t in held if t.name not in outside) < 1024


@pytest.mark.parametrize("head", one_by_default("other", ["", "other"]))
def test_an_encoder_alone_is_averaged(tmp_path: Path, head: str) -> None:
    """Of a Whisper that writes, or of no head: no layer stands before the head that adapters bring."""
    source = write_sounds_source(tmp_path / "source", head=head)
    loaded = load_sounds(str(source), 0)
    assert (loaded.labels, loaded.projected) == (None, False)
    assert not [name for name in loaded.tensors if not name.startswith("encoder.")]
    assert "left out: " in loaded.reasons[0]
    build_sounds(str(source), bits=32, out=tmp_path / "base")
    opened = open_media(tmp_path / "base")
    assert (opened.manifest.pooling, opened.manifest.head.in_features) == ("mean", 32)
    heard = torch.randn(2, BANDS, FRAMES, generator=torch.Generator().manual_seed(0))
    own = WhisperForAudioClassification.from_pretrained(source).eval()
    with torch.no_grad():
        expected = own.encoder(heard).last_hidden_state.mean(1)
        torch.testing.assert_close(opened.model.features(heard), expected, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_the_encoder_alone_has_no_head(tmp_path: Path) -> None:
    source = write_sounds_source(tmp_path / "source")
    path = source / "model.safetensors"
    encoder = {k: v for k, v in load_file(path).items() if k.startswith("encoder.")}
    save_file(encoder, path)
    assert "no head" in load_sounds(str(source), 0).reasons[0]


@pytest.mark.parametrize("lacking", ["projector.bias", "classifier.weight"])
def test_a_head_that_is_not_whole_is_refused(tmp_path: Path, lacking: str) -> None:
    source = write_sounds_source(tmp_path / "source", head="own")
    path = source / "model.safetensors"
    tensors = load_file(path)
    del tensors[lacking]
    save_file(tensors, path)
    with pytest.raises(ArtefactError, match=f"the checkpoint lacks {lacking}"):
        load_sounds(str(source), 0)


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"feature_size": 80, "n_fft": 400, "hop_length": 160},
        {"sampling_rate": 8000, "n_fft": 200, "hop_length": 80, "padding_side": None},
        {"mel_filters": [[0.0]], "n_samples": 5, "nb_max_frames": 7, "dither": None},
        {"return_attention_mask": True, "processor_class": "WhisperProcessor"},
    ],
    ids=str,
)
def test_what_is_taken_is_what_transformers_does(tmp_path: Path, others: dict[str, Any]) -> None:
    said = {key: value for key, value in preprocessing(**others).items() if value is not None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    frames = said["sampling_rate"] // said["hop_length"]
    asked = read_preprocessing(tmp_path, bands=said["feature_size"], frames=frames)
    own = AutoFeatureExtractor.from_pretrained(tmp_path)
    for sound in write_sounds(tmp_path / "sounds", 2):
        samples = read_wav(sound.read_bytes(), rate=RATE, place="x")
        heard = samples.astype(np.float32) / 32768
        expected = own(heard, sampling_rate=asked.rate, return_tensors="np").input_features[0]
        found = SoundCodec(asked).values(
            sound.read_bytes().replace(
                RATE.to_bytes(4, "little") + (2 * RATE).to_bytes(4, "little"),
                asked.rate.to_bytes(4, "little") + (2 * asked.rate).to_bytes(4, "little"),
            ),
            place="x",
        )
        assert np.abs(found - expected).max() <= 1e-4


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.pop(name)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        *(
            (without(name), f"it does not say `{name}`")
            for name in (
                *("feature_size", "sampling_rate", "hop_length", "chunk_length", "n_fft"),
                "feature_extractor_type",
            )
        ),
        (lambda d: d.update(do_denoise=True), "`do_denoise` is not known here"),
        (lambda d: d.update(dither=1e-4), "`dither` is 0.0001; it is not done here"),
        (lambda d: d.update(padding_value=1.0), "`padding_value` is 1.0"),
        (lambda d: d.update(do_normalize=True), "`do_normalize` is true"),
        (lambda d: d.update(padding_side="left"), '`padding_side` is "left"'),
        (lambda d: d.update(padding_side=None), "`padding_side` is null"),
        *(
            (lambda d, kind=kind: d.update(feature_extractor_type=kind), "is not known here")
            for kind in ("Wav2Vec2FeatureExtractor", "ASTFeatureExtractor", None, 5, [])
        ),
        (lambda d: d.update(feature_size=9), "9 bands in 20 frames, and the model reads 8 in 20"),
        (lambda d: d.update(hop_length=400), "8 bands in 40 frames"),
        (lambda d: d.update(hop_length=0), "hop"),
        (lambda d: d.update(hop_length=-800), "hop"),
        (lambda d: d.update(chunk_length=1.0), "`chunk_length` is 1.0, no whole number"),
        (lambda d: d.update(chunk_length=True), "`chunk_length` is true, no whole number"),
        (lambda d: d.update(n_fft=255), "window"),
        (lambda d: d.update(n_fft="256"), '`n_fft` is "256", no whole number'),
        (lambda d: d.update(sampling_rate=10**30), "rate"),
        (
            lambda d: d.update(sampling_rate=192_000, chunk_length=299, hop_length=8000),
            "samples are heard",
        ),
    ],
)
def test_preprocessing_that_is_unsaid_or_unknown_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], cause: str
) -> None:
    settings = preprocessing()
    change(settings)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ArtefactError, match="preprocessor_config") as caught:
        read_preprocessing(tmp_path, bands=BANDS, frames=FRAMES)
    assert cause in caught.value.cause


def test_a_source_of_odd_preprocessing_is_no_base(tmp_path: Path) -> None:
    settings = preprocessing(dither=0.1)
    source = write_sounds_source(tmp_path / "source", settings=settings)
    with pytest.raises(ArtefactError, match="preprocessor_config"):
        build_sounds(str(source), bits=4, out=tmp_path / "base")
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"d_model": None}, "does not say `d_model`"),
        ({"max_source_positions": None}, "does not say `max_source_positions`"),
        ({"activation_function": None}, "does not say `activation_function`"),
        ({"max_source_positions": 11}, "and the model reads 8 in 22"),
        ({"use_weighted_layer_sum": True}, "reads all layers"),
        ({"model_type": "bert"}, "cannot be a base for audio classification"),
        *(({"model_type": name}, reason) for name, reason in list(REFUSED.items())[:2]),
        ({"auto_map": {"AutoModel": "x"}}, "code of its own"),
        ({"quantization_config": {"bits": 4}}, "quantised already"),
        ({"architectures": 5}, "`architectures` is no list of names"),
        ({"encoder_layers": 3}, "the checkpoint lacks encoder.layers.2"),
        ({"encoder_layers": 1}, "for which its config.json has no place"),
        ({"encoder_layers": 1025}, "`encoder_layers` is not from 1 to 1024"),
        ({"encoder_ffn_dim": 40}, "by config.json"),
        ({"classifier_proj_size": 20}, "by config.json"),
    ],
)
def test_a_source_that_contradicts_itself_is_refused(
    source: Path, tmp_path: Path, fields: dict[str, Any], cause: str
) -> None:
    copied = shutil.copytree(source, tmp_path / "source")
    path = copied / "config.json"
    document = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))
    with pytest.raises(ArtefactError) as caught:
        build_sounds(str(copied), bits=4, out=tmp_path / "base")
    assert cause in caught.value.cause


def test_a_manifest_that_is_changed_is_refused(tiny_sounds: Path) -> None:
    text = (tiny_sounds / "manifest.json").read_text()
    assert isinstance(read_manifest(tiny_sounds), AudioManifest)

    def refused(change: Callable[[dict[str, Any]], Any]) -> str:
        document = json.loads(text)
        change(document)
        with pytest.raises(ArtefactError) as caught:
            parse_audio_manifest(json.dumps(document), source="m")
        return caught.value.cause

    assert "fingerprint" in refused(lambda d: d["log_mel"].update(window=512))
    assert "fingerprint" in refused(lambda d: d.update(pooling="mean"))
    assert "frames are not" in refused(lambda d: d["log_mel"].update(hop=400))
    assert "highest" in refused(lambda d: d["log_mel"].update(highest=4000))
    assert "kind" in refused(lambda d: d["log_mel"].update(kind="mfcc"))
    assert "dither" in refused(lambda d: d["log_mel"].update(dither=0.1))
    assert "input_features alone" in refused(lambda d: d["graph"].update(inputs=["input_ids"]))
    assert "pooling" in refused(lambda d: d.update(pooling="cls"))
    assert "task" in refused(lambda d: d.update(task="image-classification"))


def test_a_manifest_of_other_sounds_does_not_fit(tiny_sounds: Path, tmp_path: Path) -> None:
    """Also one with a fingerprint of its own: neither model nor graph reads them."""
    folder = shutil.copytree(tiny_sounds, tmp_path / "base")
    manifest = read_manifest(folder)
    assert isinstance(manifest, AudioManifest)
    for change in ({"bands": 9}, {"hop": 400, "frames": 40}, {"seconds": 2, "frames": 40}):
        log_mel = manifest.log_mel.model_copy(update=change)
        other = manifest.model_copy(update={"log_mel": log_mel}).fingerprinted()
        (folder / "manifest.json").write_text(other.to_json())
        with pytest.raises(ArtefactError, match="the model reads sounds of 8 x 20"):
            verify_base(folder)
        with pytest.raises(ArtefactError, match="cannot be opened"):
            open_media(folder, verify=False)
        with pytest.raises(ArtefactError, match="the graph does not read `input_features` of"):
            EdgeBase.open(folder, threads=1)


def test_a_folder_says_what_it_is_for(source: Path, tmp_path: Path) -> None:
    assert task_of_folder(str(source)) == "audio-classification"
    assert task_of_folder(str(tmp_path)) == ""
    (tmp_path / "config.json").write_text('{"model_type": ["whisper"]}')
    assert task_of_folder(str(tmp_path)) == ""


@pytest.mark.slow
def test_the_command_sees_what_a_folder_holds(source: Path, tmp_path: Path) -> None:
    arguments = ["build", str(source), "--out", str(tmp_path / "base"), "--json"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert json.loads(done.stdout)["task"] == "audio-classification"
    timed = [*arguments[:3], str(tmp_path / "timed"), "--seconds", "2"]
    with pytest.raises(PlanError, match="its positions say how long a sound"):
        CliRunner().invoke(app, timed, catch_exceptions=False)
    with pytest.raises(PlanError, match="--pooling"):
        CliRunner().invoke(app, [*arguments, "--pooling", "cls"], catch_exceptions=False)
    again = [*arguments, "--task", "sequence-classification", "--out", str(tmp_path / "other")]
    with pytest.raises(ArtefactError, match="reads sounds, and a base that sorts texts"):
        CliRunner().invoke(app, again, catch_exceptions=False)
    with pytest.raises(PlanError, match="--seconds is for bases of sounds"):
        CliRunner().invoke(app, [*again, "--seconds", "2"], catch_exceptions=False)
