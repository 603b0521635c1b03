"""What may fill a decoder's slots, and under which name."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.decoder.adapters import Adapters, adapter_of, load_decoder_adapter
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.edge_adapter import write_edge_adapter
from protocol.errors import ArtefactError, DataError
from protocol.forms import SOFT_PROMPT
from protocol.manifest import Graph
from protocol.peft_format import (
    EDGE_FILE,
    RELEASE_FILE,
    ReleaseNote,
    parse_release,
    render_release,
)
from tests.tiny_decoder import lora, prefix, soft_prompt

Q = "model.layers.0.self_attn.q_proj"


def test_a_file_and_its_tensors_are_the_same(decoder: DecoderBase, tmp_path: Path) -> None:
    tensors = lora() | soft_prompt() | prefix()
    write_edge_adapter(tensors, tmp_path / "a.onnx_adapter")
    loaded = load_decoder_adapter(tmp_path / "a.onnx_adapter", decoder)
    assert loaded.values.keys() == (lora() | soft_prompt()).keys()
    assert (loaded.prompt_length, loaded.prefix_length, loaded.positions) == (5, 3, 8)
    for name, value in loaded.values.items():
        np.testing.assert_array_equal(value.numpy(), tensors[name])
    parts = [value.numpy() for value in loaded.prefix]
    assert [part.shape for part in parts] == [(1, 2, 3, 16)] * 4
    beside = [part[0].swapaxes(0, 1).reshape(3, 32) for part in parts]
    np.testing.assert_array_equal(np.concatenate(beside, 1), tensors["prefix"])


def test_a_file_that_is_overwritten_does_not_change_what_is_loaded(
    decoder: DecoderBase, tmp_path: Path
) -> None:
    path = tmp_path / "a.onnx_adapter"
    write_edge_adapter(lora(), path)
    loaded = load_decoder_adapter(path, decoder)
    before = {name: value.numpy().copy() for name, value in loaded.values.items()}
    path.write_bytes(bytes(path.stat().st_size))
    for name, value in loaded.values.items():
        np.testing.assert_array_equal(value.numpy(), before[name])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.nowhere.lora_A": np.zeros((32, 3), np.float32)}, "no slot"),
        ({f"{Q}.lora_A": np.zeros((32, 3), np.float64)}, "float64"),
        ({f"{Q}.lora_A": np.zeros((31, 3), np.float32)}, "shape"),
        ({f"{Q}.lora_A": np.zeros((32, 4), np.float32)}, "shape"),
        ({f"{Q}.lora_A": np.full((32, 3), np.nan, np.float32)}, "NaN"),
        ({f"{Q}.lora_A": None}, "missing"),
        (
            {
                f"{Q}.lora_A": np.zeros((32, 40), np.float32),
                f"{Q}.lora_B": np.zeros((40, 64), np.float32),
            },
            "rank 40",
        ),
        ({SOFT_PROMPT: np.zeros((4, 31), np.float32)}, "soft_prompt has shape"),
        ({SOFT_PROMPT: np.zeros((48, 32), np.float32)}, "takes 48 positions, the base has 48"),
        (prefix(tokens=24) | soft_prompt(tokens=24), "takes 48 positions"),
        ({"prefix": np.zeros((3, 64), np.float32)}, "prefix has shape"),
        ({"prefix": np.zeros((3, 128), np.float64)}, "float64"),
        ({"prefix": np.full((3, 128), np.inf, np.float32)}, "infinity"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(decoder: DecoderBase, change, said: str) -> None:
    tensors = {name: value for name, value in (lora() | change).items() if value is not None}
    with pytest.raises(ArtefactError, match=said):
        adapter_of(tensors, decoder, source="file")


def test_a_base_without_a_slot_for_a_prompt_says_so(decoder: DecoderBase) -> None:
    graph = decoder.manifest.graph.model_dump()
    graph["slots"] = [slot for slot in graph["slots"] if slot["name"] != SOFT_PROMPT]
    manifest = decoder.manifest.model_copy(update={"graph": Graph(**graph)})
    with pytest.raises(ArtefactError, match="no slot") as refused:
        adapter_of(soft_prompt(), dataclasses.replace(decoder, manifest=manifest), source="t")
    assert "build the base again" in refused.value.remedy


def test_files_that_are_no_adapter_are_refused(decoder: DecoderBase, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx_adapter"
    with pytest.raises(ArtefactError, match="missing"):
        load_decoder_adapter(path, decoder)
    path.write_bytes(b"no adapter")
    with pytest.raises(ArtefactError, match="not a readable"):
        load_decoder_adapter(path, decoder)
    write_edge_adapter(lora(), path)
    with pytest.raises(ArtefactError, match="damaged"):
        load_decoder_adapter(path, decoder, sha256="0" * 64)


def test_names_are_looked_up(decoder: DecoderBase) -> None:
    adapters = Adapters(decoder)
    assert adapters.named(None) is None
    first = adapters.put("poems", lora())
    assert adapters.named("poems") is first
    second = adapters.put("poems", lora())
    assert adapters.named("poems") is second is not first
    with pytest.raises(DataError, match="nearest is `poems`"):
        adapters.named("poem")
    adapters.remove("poems")
    with pytest.raises(DataError, match="no adapter"):
        adapters.named("poems")
    with pytest.raises(DataError, match="no adapter"):
        adapters.remove("poems")


def test_an_adapter_of_nothing_is_refused(decoder: DecoderBase, tmp_path: Path) -> None:
    write_edge_adapter({}, tmp_path / "a.onnx_adapter")
    with pytest.raises(ArtefactError, match="adapts nothing"):
        load_decoder_adapter(tmp_path / "a.onnx_adapter", decoder)


def released(folder: Path, fingerprint: str, **other: Any) -> Path:
    """The folder of a release, as far as a device reads it."""
    write_edge_adapter(lora(), folder / EDGE_FILE)
    note = ReleaseNote(
        plan_name="t",
        plan_digest="0" * 64,
        base_fingerprint=fingerprint,
        round=1,
        adapter_digest="0" * 64,
        exchange="secagg",
        files={EDGE_FILE: hashlib.sha256((folder / EDGE_FILE).read_bytes()).hexdigest()},
        metrics={},
        **{"task": "causal-lm", "labels": [], "max_length": 9} | other,
    )
    (folder / RELEASE_FILE).write_bytes(render_release(note))
    return folder


def test_a_release_is_loaded_by_its_folder(decoder: DecoderBase, tmp_path: Path) -> None:
    loaded = load_decoder_adapter(released(tmp_path, decoder.manifest.fingerprint), decoder)
    assert loaded.values.keys() == lora().keys()
    (tmp_path / EDGE_FILE).write_bytes(b"another")
    with pytest.raises(ArtefactError, match="its sha256 is not the one named"):
        load_decoder_adapter(tmp_path, decoder)


@pytest.mark.parametrize(
    ("fingerprint", "other", "says"),
    [
        ("", {"task": "classification", "labels": ["a", "b"]}, "answers with labels"),
        ("", {"task": "regression", "range": (0.0, 1.0)}, "answers with numbers"),
        ("f" * 64, {}, "belongs to base ffffffffffff"),
        ("", {"files": {}}, "the adapter was not released"),
    ],
)
def test_a_release_of_something_else_is_refused(
    decoder: DecoderBase, tmp_path: Path, fingerprint: str, other: dict[str, Any], says: str
) -> None:
    files = other.pop("files", None)
    folder = released(tmp_path, fingerprint or decoder.manifest.fingerprint, **other)
    if files is not None:
        note = parse_release((folder / RELEASE_FILE).read_text(), source="test")
        changed = note.model_copy(update={"files": files})
        (folder / RELEASE_FILE).write_bytes(render_release(changed))
    with pytest.raises(ArtefactError, match=says):
        load_decoder_adapter(folder, decoder)


def test_a_folder_that_is_no_release_is_refused(decoder: DecoderBase, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"release.json cannot be read"):
        load_decoder_adapter(tmp_path, decoder)
