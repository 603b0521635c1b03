"""An adapter for llama.cpp: byte for byte what its own writer makes, in its order of rows."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from base_model.gguf.container import read_container
from base_model.gguf.lora import Factors, gguf_lora, write_gguf_lora
from protocol.errors import ArtefactError
from tests.unit.base_model.gguf.files import HEADS, HIDDEN, INNER, KV_HEADS, SIZE, in_ggml_order

SHAPES = {
    "self_attn.q_proj": ("attn_q", HEADS * SIZE, HIDDEN),
    "self_attn.k_proj": ("attn_k", KV_HEADS * SIZE, HIDDEN),
    "self_attn.v_proj": ("attn_v", KV_HEADS * SIZE, HIDDEN),
    "self_attn.o_proj": ("attn_output", HIDDEN, HEADS * SIZE),
    "mlp.gate_proj": ("ffn_gate", INNER, HIDDEN),
    "mlp.up_proj": ("ffn_up", INNER, HIDDEN),
    "mlp.down_proj": ("ffn_down", HIDDEN, INNER),
}
SETTINGS: dict[str, Any] = {
    "architecture": "llama",
    "alpha": 16.0,
    "heads": HEADS,
    "kv_heads": KV_HEADS,
}
QUERIES = "model.layers.0.self_attn.q_proj"


def factors_of(layers: int = 2, rank: int = 3, seed: int = 0) -> dict[str, Factors]:
    rng = np.random.default_rng(seed)
    return {
        f"model.layers.{layer}.{module}": Factors(
            down=rng.normal(size=(rank, width)).astype(np.float32),
            up=rng.normal(size=(out, rank)).astype(np.float32),
        )
        for layer in range(layers)
        for module, (_, out, width) in SHAPES.items()
    }


def by_the_library(path: Path, factors: dict[str, Factors], architecture: str) -> bytes:
    """The same adapter by the gguf package's writer, rows reordered as llama.cpp's converter does."""
    writer = GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    for module, pair in sorted(factors.items()):
        _, _, layer, name = module.split(".", 3)
        part, _, _ = SHAPES[name]
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(part)
        up = pair.up
        if heads and architecture == "llama":
            up = in_ggml_order(up, heads)
        writer.add_tensor(f"blk.{layer}.{part}.weight.lora_a", pair.down)
        writer.add_tensor(f"blk.{layer}.{part}.weight.lora_b", np.ascontiguousarray(up))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_it_is_the_file_that_the_library_writes(architecture: str, tmp_path: Path) -> None:
    factors = factors_of()
    data = gguf_lora(factors, **{**SETTINGS, "architecture": architecture})
    assert data == by_the_library(tmp_path / "library.gguf", factors, architecture)


def test_it_is_read_by_the_library_and_by_our_reader(tmp_path: Path) -> None:
    path, factors = tmp_path / "adapter.gguf", factors_of()
    write_gguf_lora(path, factors, **SETTINGS)
    library, own = GGUFReader(path), read_container(path)
    assert own.keys == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 16.0,
    }
    assert len(own.tensors) == len(library.tensors) == 2 * len(factors)
    values = {tensor.name: np.array(tensor.data) for tensor in library.tensors}
    for name, entry in own.tensors.items():
        assert entry.shape == values[name].shape
        assert own.raw(entry) == values[name].tobytes()
    last = factors["model.layers.1.mlp.down_proj"]
    assert np.array_equal(values["blk.1.ffn_down.weight.lora_a"], last.down)
    assert np.array_equal(values["blk.1.ffn_down.weight.lora_b"], last.up)


def test_rows_of_queries_are_interleaved_within_a_head() -> None:
    """Heads of four numbers, by hand: the pairs that rotate together are (0, 2) and (1, 3)."""
    up = np.arange(8, dtype=np.float32)[:, None]
    pair = Factors(down=np.ones((1, 2), np.float32), up=up)
    data = gguf_lora({QUERIES: pair}, architecture="llama", alpha=1.0, heads=2, kv_heads=1)
    assert np.frombuffer(data[-32:], np.float32).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@settings(max_examples=25)
@given(seed=st.integers(0, 999), rank=st.integers(1, 9), layers=st.integers(1, 12))
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rank: int, layers: int
) -> None:
    path, factors = tmp_path_factory.getbasetemp() / "lora.gguf", factors_of(layers, rank, seed)
    write_gguf_lora(path, factors, **SETTINGS)
    container = read_container(path)
    for module, pair in factors.items():
        _, _, layer, name = module.split(".", 3)
        part = SHAPES[name][0]
        down, up = (container.tensors[f"blk.{layer}.{part}.weight.lora_{end}"] for end in "ab")
        assert container.raw(down) == pair.down.tobytes()
        rows = np.frombuffer(container.raw(up), np.float32).reshape(pair.up.shape)
        assert sorted(map(tuple, rows)) == sorted(map(tuple, pair.up))


def odd(**other: Any) -> dict[str, Factors]:
    """One linear's factors, one of which is ``other``."""
    return {QUERIES: replace(factors_of()[QUERIES], **other)}


@pytest.mark.parametrize(
    ("factors", "settings_", "fault"),
    [
        ({}, {}, "is empty"),
        (factors_of(), {"architecture": "gpt2"}, "of gpt2 cannot be written"),
        (factors_of(), {"alpha": 0.0}, "alpha is 0.0"),
        (factors_of(), {"alpha": float("inf")}, "alpha is inf"),
        (factors_of(), {"heads": 3}, "64 rows are not those of 3 heads"),
        (factors_of(), {"heads": 0}, "64 rows are not those of 0 heads"),
        ({"lm_head": factors_of()[QUERIES]}, {}, "lm_head is no linear"),
        ({"model.layers.00.mlp.up_proj": factors_of()[QUERIES]}, {}, "no linear"),
        ({"model.layers.0.input_layernorm": factors_of()[QUERIES]}, {}, "no linear"),
        (odd(down=np.ones((4, HIDDEN), np.float32)), {}, r"\(4, 64\) and \(64, 3\)"),
        (odd(up=np.ones((64, 0), np.float32), down=np.ones((0, 64), np.float32)), {}, "shapes"),
        (odd(up=np.ones(64, np.float32)), {}, "shapes"),
        (odd(up=np.ones((64, 3))), {}, "not float32"),
        (odd(up=np.full((64, 3), np.nan, np.float32)), {}, "NaN or infinity"),
    ],
)
def test_what_llama_cpp_would_not_take_is_refused(
    factors: dict[str, Factors], settings_: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match=fault):
        write_gguf_lora(tmp_path / "adapter.gguf", factors, **(SETTINGS | settings_))
    assert not list(tmp_path.iterdir())


def test_the_same_factors_in_another_order_give_the_same_bytes() -> None:
    factors = factors_of()
    turned = dict(reversed(factors.items()))
    digests = {hashlib.sha256(gguf_lora(f, **SETTINGS)).digest() for f in (factors, turned)}
    assert len(digests) == 1
