"""Bases that hear samples against transformers' own model, and sources that are refused."""

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
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from base_model.media_read import task_of_folder
from base_model.media_store import open_media
from base_model.programs.checks import OPERATORS
from base_model.programs.folder import make_program
from base_model.slot_check import verify_slots
from base_model.sounds.build import build_sounds
from base_model.sounds.frames import frames_of
from base_model.sounds.source import load_sounds
from base_model.sounds.waveform_preprocessing import read_waveform
from base_model.verify import read_manifest, verify_base
from edge_runtime.base import EdgeBase
from edge_runtime.runtime import EdgeRuntime
from protocol.errors import ArtefactError, PlanError
from protocol.recipe import Recipe
from protocol.rows.media import codec_of, read_inputs
from protocol.rows.sounds import read_wav
from protocol.waveform_manifest import WaveformManifest, parse_waveform_manifest
from tests.sound_models import LABELS, RATE, tone, wav, write_sounds
from tests.tiers import one_by_default, some_by_default
from tests.unit.client.test_sounds import plan_of
from tests.waveform_models import (
    CLASSES,
    KINDS,
    LEAST,
    POSITIONS,
    SECONDS,
    waveform_preprocessing,
    with_old_names,
    write_waveform_source,
)

DEFAULT = ("wav2vec2", "wav2vec2-large", "hubert-large")


@pytest.fixture(scope="module")
def source(tiny_samples: Path) -> Path:
    """What ``tiny_samples`` was built from."""
    return tiny_samples.parent / "source"


def heard_by_transformers(source: Path, sounds: list[Path]) -> Any:
    """Of a source's own extractor, of sounds one by one, with the mask that it asks for."""
    extractor = AutoFeatureExtractor.from_pretrained(source)
    samples = [read_wav(path.read_bytes(), rate=RATE, place="x") for path in sounds]
    inputs = extractor(
        [each.astype(np.float32) / 32768 for each in samples],
        sampling_rate=RATE,
        padding="max_length",
        max_length=RATE * SECONDS,
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    if not extractor.return_attention_mask:
        inputs.pop("attention_mask")
    return inputs


@pytest.mark.parametrize("bits", one_by_default(4, (4, 8, 16, 32)))
@pytest.mark.parametrize("kind", some_by_default(DEFAULT, KINDS))
def test_a_base_answers_as_transformers_own_class(
    tiny_samples: Path, source: Path, tmp_path: Path, kind: str, bits: int
) -> None:
    """With the source's head and its labels' names, on the values that the codes stand for."""
    base = tiny_samples
    if (kind, bits) != ("wav2vec2-large", 4):
        source, base = write_waveform_source(tmp_path / "s", kind, head="own"), tmp_path / "base"
        build_sounds(str(source), bits=bits, out=base, scales=True, seconds=SECONDS)
    manifest = verify_base(base)
    assert isinstance(manifest, WaveformManifest)
    assert (manifest.pooling, manifest.head.in_features) == ("projected", 24)
    assert (manifest.max_positions, manifest.waveform.masked) == (POSITIONS, KINDS[kind][2])
    verify_slots(base, manifest)
    sounds = write_sounds(tmp_path / "sounds", 24)
    own = AutoModelForAudioClassification.from_pretrained(source).eval()
    opened = open_media(base)
    for linear in manifest.linears:
        weight = opened.model.get_submodule(linear.path).weight
        own.get_submodule(linear.path).weight.data = torch.as_tensor(weight).detach().clone()
    inputs = heard_by_transformers(source, sounds)
    feeds = read_inputs(sounds, codec_of(manifest))
    assert list(feeds) == list(inputs) == manifest.graph.inputs
    for name, value in inputs.items():
        np.testing.assert_allclose(feeds[name], value.numpy(), rtol=0, atol=1e-5)
    with torch.no_grad():
        expected = own(**inputs).logits.numpy()
        found = opened.model(**{k: torch.from_numpy(v) for k, v in feeds.items()}).logits.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    runtime = EdgeRuntime(EdgeBase.open(base, threads=1))
    assert np.abs(runtime.logits(sounds) - expected).max() <= 1e-4 * np.abs(expected).max()
    said = [answer.answer for answer in runtime.infer(sounds)]
    assert said == [LABELS[index] for index in expected.argmax(-1)]
    assert len(set(said)) > 1


def test_the_graph_has_operators_of_programs_alone(tiny_samples: Path) -> None:
    graph = onnx.load(str(tiny_samples / "graph.onnx")).graph
    assert {(node.domain, node.op_type) for node in graph.node} <= OPERATORS
    assert [v.name for v in graph.input if v.name not in {i.name for i in graph.initializer}] == [
        *("input_values", "attention_mask")
    ]


def test_no_slot_is_in_the_front(tiny_samples: Path) -> None:
    """No gradient goes there: convolutions and what projects them are the same under every adapter."""
    names = read_manifest(tiny_samples).graph.slot_names
    assert names
    front = ("wav2vec2.feature_extractor.", "wav2vec2.feature_projection.")
    assert not [name for name in names if name.startswith(front)]
    assert "wav2vec2.encoder.layer_norm.scale" in names


@pytest.mark.parametrize("method", ["lora", "norm"])
def test_a_program_goes_back_through_layers_alone(tiny_samples: Path, method: str) -> None:
    """What the front computes is read by nothing of the backward half, and its numbers lie in the base's file."""
    recipe = Recipe(plan=plan_of(tiny_samples, method), manifest=read_manifest(tiny_samples))
    for data in make_program(tiny_samples, recipe).graphs.values():
        graph = onnx.load_model_from_string(data).graph
        front = {name for node in graph.node if node.op_type == "Conv" for name in node.output}
        assert len(front) == 4
        back = [node for node in graph.node if node.output[0].startswith("gradient.")]
        assert not [node for node in back if node.op_type == "Conv" or front & set(node.input)]
        held = graph.initializer
        outside = {t.name for t in held if t.data_location == onnx.TensorProto.EXTERNAL}
        assert len([name for name in outside if "conv.weight" in name]) == 4
        assert max(len(t.raw_data) for t in held if t.name not in outside) < 1024


def test_a_sound_of_less_than_a_position_has_one(tiny_samples: Path, source: Path) -> None:
    """And padding is neither seen nor averaged: however much is behind a sound, its features are the same."""
    runtime = EdgeRuntime(EdgeBase.open(tiny_samples, threads=1))
    opened, short = open_media(tiny_samples), tone(300.0)[: LEAST - 1]
    feeds = read_inputs([wav(short)], codec_of(opened.manifest))
    first = {name: torch.from_numpy(value[:, :LEAST]) for name, value in feeds.items()}
    with torch.no_grad():  # a single position, of the sound and a zero
        expected = opened.model(input_values=first["input_values"]).logits.numpy()
    np.testing.assert_allclose(runtime.logits([wav(short)]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", one_by_default("wav2vec2", KINDS))
@pytest.mark.parametrize("head", one_by_default("other", ["", "other"]))
def test_an_encoder_alone_is_averaged(tmp_path: Path, head: str, kind: str) -> None:
    """Of one that was only trained to fill gaps or to write: no layer stands before the head."""
    source = write_waveform_source(tmp_path / "source", kind, head=head)
    loaded = load_sounds(str(source), SECONDS)
    assert (loaded.labels, loaded.projected) == (None, False)
    assert all(name.startswith(f"{loaded.family.prefix}.") for name in loaded.tensors)
    assert ("left out: " if head else "no head") in loaded.reasons[0]
    build_sounds(str(source), bits=32, out=tmp_path / "base", seconds=SECONDS)
    opened = open_media(tmp_path / "base")
    assert (opened.manifest.pooling, opened.manifest.head.in_features) == ("mean", 32)
    heard = torch.randn(2, RATE, generator=torch.Generator().manual_seed(0))
    own = CLASSES[KINDS[kind][0]][1].from_pretrained(source).eval()
    with torch.no_grad():
        expected = own(heard).last_hidden_state.mean(1)
        torch.testing.assert_close(opened.model.features(heard), expected, rtol=1e-4, atol=1e-4)


def test_the_kernel_of_positions_has_several_names(tmp_path: Path) -> None:
    """Length and direction by transformers' names of now and of old, or one tensor; in all it is the same."""
    source = write_waveform_source(tmp_path / "source")
    new = load_sounds(str(source), SECONDS).tensors
    old = load_sounds(str(with_old_names(source)), SECONDS).tensors
    assert new.keys() == old.keys()
    assert all(torch.equal(new[name], old[name]) for name in new)
    path, kernel = source / "model.safetensors", "wav2vec2.encoder.pos_conv_embed.conv.weight"
    tensors = load_file(path)
    del tensors["encoder.pos_conv_embed.conv.weight_g"]
    save_file(tensors, path)
    with pytest.raises(ArtefactError, match=r"half of wav2vec2.encoder.pos_conv_embed.conv.weight"):
        load_sounds(str(source), SECONDS)
    del tensors["encoder.pos_conv_embed.conv.weight_v"]
    save_file(tensors | {kernel.removeprefix("wav2vec2."): new[kernel]}, path)
    assert torch.equal(load_sounds(str(source), SECONDS).tensors[kernel], new[kernel])


@pytest.mark.parametrize("lacking", ["projector.bias", "classifier.weight"])
def test_a_head_that_is_not_whole_is_refused(source: Path, tmp_path: Path, lacking: str) -> None:
    copied = shutil.copytree(source, tmp_path / "source")
    tensors = load_file(copied / "model.safetensors")
    del tensors[lacking]
    save_file(tensors, copied / "model.safetensors")
    with pytest.raises(ArtefactError, match=f"the checkpoint lacks {lacking}"):
        load_sounds(str(copied), SECONDS)


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"do_normalize": False, "return_attention_mask": True},
        {"feature_extractor_type": None, "padding_side": None, "padding_value": 0},
        {"processor_class": "Wav2Vec2Processor"},
    ],
    ids=str,
)
def test_what_is_taken_is_what_transformers_does(
    source: Path, tmp_path: Path, others: dict[str, Any]
) -> None:
    """Of a file that does not say whose it is: transformers goes by the config then."""
    said = {k: value for k, value in waveform_preprocessing(**others).items() if value is not None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    shutil.copy(source / "config.json", tmp_path)
    asked = read_waveform(tmp_path, seconds=SECONDS)
    sounds = [*write_sounds(tmp_path / "sounds", 3), tmp_path / "silence.wav"]
    sounds[-1].write_bytes(wav(np.zeros(9, np.int16)))
    inputs = heard_by_transformers(tmp_path, sounds)
    manifest = read_manifest(source.parent / "base")
    feeds = read_inputs(sounds, codec_of(manifest.model_copy(update={"waveform": asked})))
    assert list(feeds) == list(inputs)
    for name, value in inputs.items():
        np.testing.assert_allclose(feeds[name], value.numpy(), rtol=0, atol=1e-5)


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.pop(name)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        *(
            (without(name), f"it does not say `{name}`")
            for name in ("sampling_rate", "do_normalize", "return_attention_mask")
        ),
        (lambda d: d.update(do_denoise=True), "`do_denoise` is not known here"),
        (lambda d: d.update(padding_value=1.0), "`padding_value` is 1.0; it is 0 here"),
        (lambda d: d.update(padding_side="left"), '`padding_side` is "left"; it is "right" here'),
        (lambda d: d.update(feature_size=80), "`feature_size` is 80; it is 1 here"),
        (lambda d: d.update(do_normalize=1), "normalised"),
        (lambda d: d.update(return_attention_mask="yes"), "masked"),
        *(
            (lambda d, kind=kind: d.update(feature_extractor_type=kind), "is not known here")
            for kind in ("WhisperFeatureExtractor", "SeamlessM4TFeatureExtractor", None, 5, [])
        ),
        (lambda d: d.update(sampling_rate=16e3), "`sampling_rate` is 16000.0, no whole number"),
        (lambda d: d.update(sampling_rate=10**30), "rate"),
        (lambda d: d.update(sampling_rate=192_000), "samples are heard"),
    ],
)
def test_preprocessing_that_is_unsaid_or_unknown_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], cause: str
) -> None:
    settings = waveform_preprocessing()
    change(settings)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ArtefactError, match="preprocessor_config") as caught:
        read_waveform(tmp_path, seconds=60)
    assert cause in caught.value.cause


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        *(
            ({name: None}, f"does not say `{name}`")
            for name in (
                *("hidden_size", "conv_kernel", "conv_stride", "feat_extract_norm"),
                *("hidden_act", "feat_extract_activation", "do_stable_layer_norm"),
            )
        ),
        ({"use_weighted_layer_sum": True}, "reads all layers"),
        ({"add_adapter": True}, "convolutions stand behind its layers"),
        ({"adapter_attn_dim": 4}, "its layers have adapters of their own"),
        ({"conv_pos_batch_norm": True}, "norm over the sounds that are trained together"),
        ({"auto_map": {"AutoModel": "x"}}, "code of its own"),
        ({"num_hidden_layers": 3}, "the checkpoint lacks wav2vec2.encoder.layers.2"),
        ({"num_hidden_layers": 1}, "for which its config.json has no place"),
        ({"num_hidden_layers": 1025}, "`num_hidden_layers` is not from 1 to 1024"),
        ({"intermediate_size": 40}, "by config.json"),
        ({"conv_kernel": [20, 9, 4]}, "by config.json"),
        ({"num_conv_pos_embedding_groups": 2}, "by config.json"),
        ({"classifier_proj_size": 20}, "by config.json"),
        ({"conv_stride": [10, 8]}, "have not a stride each"),
        ({"conv_stride": [10, 8, 0]}, "a convolution of no size from 1 to 1024"),
        ({"conv_stride": [10, 8, True]}, "a convolution of no size from 1 to 1024"),
        ({"conv_kernel": [20, 9, 999], "conv_stride": [10, 999, 4]}, "it makes 0 positions"),
        ({"conv_stride": [1, 1, 1]}, "it makes 15969 positions"),
        ({"feat_extract_norm": "batch"}, "gives no model"),
        ({"model_type": "wavlm"}, "cannot be a base for audio classification"),
    ],
    ids=str,
)
def test_a_source_that_contradicts_itself_is_refused(
    source: Path, tmp_path: Path, fields: dict[str, Any], cause: str
) -> None:
    copied = shutil.copytree(source, tmp_path / "source")
    path = copied / "config.json"
    document = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))
    with pytest.raises(ArtefactError) as caught:
        build_sounds(str(copied), bits=4, out=tmp_path / "base", seconds=SECONDS)
    assert cause in caught.value.cause
    assert not (tmp_path / "base").exists()


def test_seconds_are_said_where_nothing_else_says_them(
    tiny_sounds: Path, tiny_images: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "base"
    with pytest.raises(PlanError, match="does not say how long a sound it hears"):
        build_sounds(str(source), bits=4, out=out)
    with pytest.raises(PlanError, match="its positions say how long a sound"):
        build_sounds(str(tiny_sounds.parent / "source"), bits=4, out=out, seconds=1)
    with pytest.raises(ArtefactError, match="seconds"):
        build_sounds(str(source), bits=4, out=out, seconds=61)
    assert task_of_folder(str(source)) == "audio-classification"
    assert not out.exists()


def test_a_manifest_that_is_changed_is_refused(tiny_samples: Path) -> None:
    text = (tiny_samples / "manifest.json").read_text()

    def refused(change: Callable[[dict[str, Any]], Any]) -> str:
        document = json.loads(text)
        change(document)
        with pytest.raises(ArtefactError) as caught:
            parse_waveform_manifest(json.dumps(document), source="m")
        return caught.value.cause

    assert "fingerprint" in refused(lambda d: d["waveform"].update(seconds=2))
    assert "fingerprint" in refused(lambda d: d["waveform"].update(normalised=False))
    assert "fingerprint" in refused(lambda d: d.update(pooling="mean"))
    assert "kind" in refused(lambda d: d["waveform"].update(kind="mfcc"))
    assert "dither" in refused(lambda d: d["waveform"].update(dither=0.1))
    assert "seconds" in refused(lambda d: d["waveform"].update(seconds=61))
    assert "samples are heard" in refused(lambda d: d["waveform"].update(seconds=60, rate=192_000))
    assert "input_values alone" in refused(lambda d: d["waveform"].update(masked=False))
    assert "input_values and attention_mask alone" in refused(
        lambda d: d["graph"].update(inputs=["input_values"])
    )
    assert "log_mel" in refused(lambda d: d.update(log_mel=d["waveform"]))
    assert "waveform" in refused(lambda d: d.pop("waveform"))


def test_a_manifest_of_other_sounds_does_not_fit(tiny_samples: Path, tmp_path: Path) -> None:
    """Also one with a fingerprint of its own: neither model nor graph reads them."""
    folder = shutil.copytree(tiny_samples, tmp_path / "base")
    manifest = read_manifest(folder)
    assert isinstance(manifest, WaveformManifest)
    for change in ({"seconds": 2}, {"rate": 8000}):
        waveform = manifest.waveform.model_copy(update=change)
        other = manifest.model_copy(update={"waveform": waveform}).fingerprinted()
        (folder / "manifest.json").write_text(other.to_json())
        with pytest.raises(ArtefactError, match="does not say what sounds are read"):
            verify_base(folder)
        with pytest.raises(ArtefactError, match="cannot be opened"):
            open_media(folder, verify=False)
        with pytest.raises(ArtefactError, match="the graph does not read `input_values` of"):
            EdgeBase.open(folder, threads=1)


def test_positions_are_counted_as_convolutions_make_them() -> None:
    """(P-1.16) Of wav2vec 2.0 as it was published: 25 ms, every 20."""
    frames = frames_of({"conv_kernel": (10, 3, 3, 3, 3, 2, 2), "conv_stride": (5, *(2,) * 6)})
    assert (frames.least, frames.hop, frames.of(16_000)) == (400, 320, 49)
    for samples in (399, 400, 719, 720, 16_000, 99_999):
        steps = samples
        for taps, stride in zip((10, 3, 3, 3, 3, 2, 2), (5, *(2,) * 6), strict=True):
            steps = (steps - taps) // stride + 1
        assert frames.of(samples) == steps
