"""Folders of bases that turn a text into another: built, verified, described, refused for what they are not."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

import edge_runtime.base
from base_model.commands import app
from base_model.decoder.calibration import default_text
from base_model.decoder.sources import decoder_source
from base_model.fetch import fetch_base
from base_model.seq2seq.build import build_seq2seq
from base_model.seq2seq.folder import seq2seq_source
from base_model.slot_check import verify_slots
from base_model.verify import read_encoder_manifest, verify_base
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.seq2seq.base import read_seq2seq_manifest
from protocol.errors import ArtefactError, FedgeError
from protocol.seq2seq_manifest import Seq2SeqManifest, parse_seq2seq_manifest
from tests.unit.base_model.decoder.models import write_decoder
from tests.unit.base_model.seq2seq.models import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("source") / "model", "t5-1.1")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    out = folder.parent / "base"
    build_seq2seq(seq2seq_source(str(folder)), bits=4, out=out)
    return out


def manifest_of(base: Path) -> Seq2SeqManifest:
    manifest = verify_base(base)
    verify_slots(base, manifest)
    assert isinstance(manifest, Seq2SeqManifest)
    return manifest


def test_each_linear_has_its_slots_in_one_graph(base: Path) -> None:
    manifest = manifest_of(base)
    assert len(manifest.slots()) == 2 * len(manifest.linears) == 72
    cross = "decoder.block.1.layer.1.EncDecAttention"
    assert {f"{cross}.k.lora_A", f"{cross}.v.lora_B"} <= manifest.encoder.slot_names
    assert {f"{cross}.q.lora_A", f"{cross}.o.lora_B"} <= manifest.graph.slot_names
    assert (manifest.start, manifest.padding, manifest.ends) == (0, 0, [1])


def test_tensors_of_both_graphs_lie_in_one_file_once(
    folder: Path, base: Path, tmp_path: Path
) -> None:
    build_seq2seq(seq2seq_source(str(folder)), bits=4, out=tmp_path / "b", one_file=2**30)
    assert "graph.data" not in manifest_of(tmp_path / "b").files
    manifest = manifest_of(base)
    assert manifest.fingerprint == manifest_of(tmp_path / "b").fingerprint
    places = {}
    for graph in manifest.graphs():
        model = onnx.load(str(base / graph.file), load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.external_data:
                place = {item.key: item.value for item in tensor.external_data}
                assert places.setdefault(tensor.name, place) == place
    assert "shared.qweight" in places
    ends = sorted((int(p["offset"]), int(p["length"])) for p in places.values())
    for (start, length), (following, _) in itertools.pairwise(ends):
        assert start + length <= following


def test_a_table_of_positions_bounds_texts_and_distances_do_not(tmp_path: Path) -> None:
    for kind, asked, got in (("bart", 1000, 96), ("bart", 20, 20), ("t5", 1000, 1000)):
        out = tmp_path / f"{kind}{asked}"
        source = seq2seq_source(str(write_model(tmp_path / f"{kind}{asked}.model", kind)))
        assert build_seq2seq(source, bits=4, out=out, context=asked).max_positions == got
        verify_base(out)


def test_linears_may_round_what_they_multiply(base: Path, folder: Path, tmp_path: Path) -> None:
    source, said = seq2seq_source(str(folder)), list[str]()
    out = tmp_path / "rounded"
    manifest = build_seq2seq(source, bits=4, activation_bits=8, out=out, explain=said.append)
    assert [graph.accuracy_level for graph in manifest.graphs()] == [4, 4]
    assert "round what they multiply" in said[0]
    assert manifest.fingerprint == manifest_of(base).fingerprint


def test_codes_are_fitted_to_a_text(folder: Path, base: Path, tmp_path: Path) -> None:
    source = seq2seq_source(str(folder))
    build_seq2seq(source, bits=4, out=tmp_path / "fitted", calibration=default_text())
    plain, fitted = (load_file(at / "weights.safetensors") for at in (base, tmp_path / "fitted"))
    codes = [name for name in plain if name.endswith(".qweight")]
    other = {name for name in codes if (plain[name] != fitted[name]).any()}
    assert other == set(codes) - {"shared.qweight", "lm_head.qweight"}


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "weights.safetensors"])
def test_a_changed_file_is_noticed(base: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    data = bytearray((copy / name).read_bytes())
    data[-2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ArtefactError, match=name):
        verify_base(copy)


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx"])
def test_slots_that_became_constants_are_noticed(base: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    model = onnx.load(str(copy / name), load_external_data=False)
    slot = next(v for v in model.graph.input if v.name.endswith(".lora_A"))
    model.graph.input.remove(slot)
    onnx.save(model, str(copy / name))
    with pytest.raises(ArtefactError, match="is a constant"):
        verify_slots(copy, read_seq2seq_manifest(copy))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"start": 67}, "a token is not in the vocabulary"),
        ({"padding": 67}, "a token is not in the vocabulary"),
        ({"ends": [67]}, "a token is not in the vocabulary"),
        ({"kv_heads": 3}, "its heads do not fit"),
        ({"tied": True}, "the fingerprint is not"),
        ({"encoder": "the decoder's"}, "is in both graphs"),
        ({"encoder_layers": 0}, "encoder_layers"),
    ],
)
def test_manifests_that_contradict_themselves(
    base: Path, change: dict[str, Any], cause: str
) -> None:
    document = json.loads((base / "manifest.json").read_text())
    change = {k: document["graph"] if v == "the decoder's" else v for k, v in change.items()}
    with pytest.raises(ArtefactError, match=cause):
        parse_seq2seq_manifest(json.dumps(document | change), source="m")


def test_what_takes_other_bases_says_what_it_is(base: Path, tmp_path: Path) -> None:
    for read in (read_encoder_manifest, edge_runtime.base.read_manifest):
        with pytest.raises(ArtefactError, match=r"writes texts?"):
            read(base)
    with pytest.raises(ArtefactError, match="turns a text into another"):
        DecoderBase.open(base)
    (tmp_path / "manifest.json").write_text('{"task": "causal-lm"}')
    with pytest.raises(ArtefactError, match="is not a base that turns a text into another"):
        read_seq2seq_manifest(tmp_path)


def test_it_is_fetched_like_any_base(base: Path, tmp_path: Path) -> None:
    manifest = manifest_of(base)
    got = fetch_base(manifest.fingerprint, mirrors=[str(base)], cache=tmp_path / "cache")
    assert manifest_of(got) == manifest


def commanded(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    if done.exception:
        raise done.exception
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_the_commands(folder: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "base")
    options = ("--task", "seq2seq-lm", "--out", out, "--context", "600", "--calibration", "none")
    said = commanded("build", str(folder), *options)
    assert (said["family"], said["linears"], said["slots"], said["start"]) == ("t5", 36, 72, 0)
    assert (said["encoder_layers"], said["layers"], said["max_positions"]) == (2, 2, 600)
    assert commanded("verify", out)["verified"]
    assert commanded("inspect", out)["fingerprint"] == said["fingerprint"]


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ([], "writes texts, and a base that sorts texts"),
        (["--task", "causal-lm"], "it turns a text into another"),
        (["--task", "seq2seq-lm", "--scales"], "for bases that sort texts"),
        (["--task", "seq2seq-lm", "--bits", "5"], "not offered"),
        (["--task", "seq2seq-lm", "--context", "1"], "--context 1 is not offered"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, options: list[str], cause: str
) -> None:
    with pytest.raises(FedgeError, match=cause):
        commanded("build", str(folder), "--out", str(tmp_path / "base"), *options)


def test_other_models_are_refused(tmp_path: Path) -> None:
    decoder = write_decoder(tmp_path / "decoder")
    with pytest.raises(ArtefactError, match="'llama' cannot be a base that turns"):
        seq2seq_source(str(decoder))
    with pytest.raises(ArtefactError, match="it turns a text into another"):
        decoder_source(str(write_model(tmp_path / "model")))
    with pytest.raises(ArtefactError, match="not read from GGUF"):
        commanded("build", "a.gguf", "--task", "seq2seq-lm", "--out", str(tmp_path / "base"))
