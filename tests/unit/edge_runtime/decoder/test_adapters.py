"""What may fill a decoder's slots, and under which name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from base_model.edge_adapter import write_edge_adapter
from edge_runtime.decoder.adapters import Adapters, adapter_of, load_decoder_adapter
from edge_runtime.decoder.base import DecoderBase
from protocol.errors import ArtefactError, DataError
from protocol.forms import SOFT_PROMPT
from tests.tiny_decoder import lora

Q = "model.layers.0.self_attn.q_proj"


def test_a_file_and_its_tensors_are_the_same(decoder: DecoderBase, tmp_path: Path) -> None:
    write_edge_adapter(lora(), tmp_path / "a.onnx_adapter")
    loaded = load_decoder_adapter(tmp_path / "a.onnx_adapter", decoder)
    assert loaded.values.keys() == lora().keys()
    for name, value in adapter_of(lora(), decoder, source="t").values.items():
        np.testing.assert_array_equal(loaded.values[name].numpy(), value.numpy())


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
        ({SOFT_PROMPT: np.zeros((4, 32), np.float32)}, "soft prompt"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(decoder: DecoderBase, change, said: str) -> None:
    tensors = {name: value for name, value in (lora() | change).items() if value is not None}
    with pytest.raises(ArtefactError, match=said):
        adapter_of(tensors, decoder, source="file")


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


def test_a_folder_of_an_adapter_is_no_adapter(decoder: DecoderBase, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is a folder"):
        load_decoder_adapter(tmp_path, decoder)
