"""Folders of decoders as commands meet them: verified, fetched, named, refused for what they are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import edge_runtime.base
from base_model.commands import app
from base_model.decoder.build import build_decoder
from base_model.decoder.check import check_graph
from base_model.decoder.families import shape_of
from base_model.decoder.sources import decoder_source
from base_model.fetch import fetch_base
from base_model.files import file_entries
from base_model.verify import read_encoder_manifest, verify_base, verify_encoder
from protocol.decoder_manifest import DecoderManifest
from protocol.errors import ArtefactError, FedgeError, PlanError
from tests.unit.base_model.decoder.models import (
    write_decoder,
)

CODED = 5e-2  # what 8 bits of the embeddings change
PROMPT = [1, 5, 9, 13, 22, 40, 7, 33, 21, 60, 3, 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("source") / "tied", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    out = folder.parent / "base"
    build_decoder(decoder_source(str(folder)), bits=4, out=out)
    return out


def manifest_of(base: Path) -> DecoderManifest:
    manifest = verify_base(base)
    assert isinstance(manifest, DecoderManifest)
    return manifest


@pytest.mark.parametrize("name", ["graph.onnx", "weights.safetensors", "config.json"])
def test_a_changed_file_is_noticed(base: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    data = bytearray((copy / name).read_bytes())
    data[-2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ArtefactError, match=name):
        verify_base(copy)


def test_a_tensor_of_another_base_is_noticed(base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    tensors = load_file(copy / "weights.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, copy / "weights.safetensors")
    manifest = json.loads((copy / "manifest.json").read_text())
    entry = file_entries(copy)["weights.safetensors"]
    manifest["files"]["weights.safetensors"] = entry.model_dump()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match=r"model\.norm\.weight is not the tensor"):
        verify_base(copy)


def test_commands_for_bases_that_sort_say_that_it_writes(base: Path) -> None:
    for read in (
        read_encoder_manifest,
        verify_encoder,
        edge_runtime.base.read_manifest,
    ):
        with pytest.raises(ArtefactError, match=r"writes texts?"):
            read(base)


def test_it_is_fetched_like_any_base(base: Path, tmp_path: Path) -> None:
    fingerprint = manifest_of(base).fingerprint
    got = fetch_base(fingerprint, mirrors=[str(base)], cache=tmp_path / "cache")
    assert manifest_of(got) == manifest_of(base)


def commanded(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    if done.exception:
        raise done.exception
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_the_commands(folder: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "base")
    said = commanded("build", str(folder), "--task", "causal-lm", "--out", out, "--context", "48")
    assert (said["family"], said["embedding_bits"], said["linears"]) == ("llama", 8, 14)
    assert (said["max_positions"], said["ends"]) == (48, [2])
    assert said["reasons"] == ["48 of 96 positions, to keep the tables small"]
    assert commanded("verify", out)["verified"]
    assert commanded("inspect", out)["fingerprint"] == said["fingerprint"]


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ([], "--task causal-lm"),  # the remedy for a decoder that is taken for an encoder
        (["--embedding-bits", "8"], "for --task causal-lm"),
        (["--context", "8"], "for --task causal-lm"),
        (["--task", "causal-lm", "--scales"], "for bases that sort texts"),
        (["--task", "causal-lm", "--pooling", "mean"], "for bases that sort texts"),
        (["--task", "causal-lm", "--bits", "5"], "not offered"),
    ],
)
def test_options_of_the_other_task_are_refused(
    folder: Path, tmp_path: Path, options: list[str], refusal: str
) -> None:
    with pytest.raises((ArtefactError, PlanError), match=refusal):
        commanded("build", str(folder), "--out", str(tmp_path / "base"), *options)


def test_the_check_knows_a_graph_that_does_not_run(folder: Path, tmp_path: Path) -> None:
    source = decoder_source(str(folder))
    (tmp_path / "graph.onnx").write_bytes(b"no graph")
    with pytest.raises(ArtefactError, match="cannot be opened"):
        check_graph(tmp_path / "graph.onnx", shape_of(source.config), {})


def test_what_a_base_is_called_does_not_steer_a_terminal(base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest |= {"source": "a\x1b[2Jb\u202e", "made_with": {"c\x1b[2J": "\x1b]0;d\x07"}}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    said = CliRunner().invoke(app, ["inspect", str(copy)]).stdout
    assert "a\\x1b[2Jb" in said
    assert all(line.isprintable() for line in said.splitlines())


@pytest.mark.parametrize(
    ("source", "options", "cause"),
    [
        ("a.gguf", ["--task", "sequence-classification"], "holds a model that writes text"),
        ("nowhere.gguf", [], "there is no such file"),
        ("model", ["--task", "causal-lm", "--calibration", "a", "--bits", "8"], "codes of 4 bits"),
    ],
)
def test_a_source_that_is_not_what_is_asked_for(
    source: str, options: list[str], cause: str, tmp_path: Path
) -> None:
    arguments = ["build", str(tmp_path / source), "--out", str(tmp_path / "base"), *options]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, FedgeError)
    assert cause in error.cause
