"""The tensors of GGUF files: bit for bit what the gguf package computes, in Hugging Face's order of rows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from base_model.decoder.source import CodedWeight, DecoderSource
from base_model.gguf.blocks import CODED, COMPUTED, decode
from base_model.gguf.read import read_gguf
from protocol.errors import ArtefactError
from tests.unit.base_model.gguf.files import (
    HEADS,
    KV_HEADS,
    expanded,
    in_ggml_order,
    library_weights,
    weights_of,
    write_gguf,
)

Kind = GGMLQuantizationType
NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "down_proj": "ffn_down",
}


@pytest.mark.parametrize("kind", CODED + COMPUTED, ids=lambda kind: kind.name)
def test_a_tensor_is_what_the_library_computes(kind: Kind) -> None:
    raw = _blocks(kind, rows=5, seed=1)
    block, _ = GGML_QUANT_SIZES[kind]
    with np.errstate(all="ignore"):  # some of the random scales are no numbers
        weight = decode(raw.tobytes(), kind, (5, 2 * max(block, 32)), None)
        oracle = dequantize(raw, kind)
    assert isinstance(weight, CodedWeight) == (kind in CODED)
    assert expanded(weight).dtype == np.float32
    assert expanded(weight).tobytes() == oracle.tobytes()


@settings(max_examples=40)
@given(kind=st.sampled_from(CODED), seed=st.integers(0, 2**32 - 1), exponent=st.integers(-8, 8))
def test_blocks_of_any_scale(kind: Kind, seed: int, exponent: int) -> None:
    raw = _blocks(kind, rows=3, seed=seed, scale=2.0**exponent)
    weight = expanded(decode(raw.tobytes(), kind, (3, 64), None))
    assert np.array_equal(weight, dequantize(raw, kind))


def test_the_sum_of_offset_and_scale_is_off_by_a_last_bit_at_most() -> None:
    random = np.random.default_rng(0)
    raw = random.integers(0, 256, (2000, 20), np.uint8)
    parts = 2.0 ** random.uniform(-14, 15, (2000, 2)) * random.choice([-1, 1], (2000, 2))
    raw[:, :4] = parts.astype("<f2").view(np.uint8)
    weight = expanded(decode(raw.tobytes(), Kind.Q4_1, (2000, 32), None))
    oracle = dequantize(raw, Kind.Q4_1)
    largest = np.abs(parts).max(1, keepdims=True) * 16
    assert np.all(np.abs(weight - oracle) <= largest * 2.0**-23)


def test_rows_move_with_their_scales_and_offsets() -> None:
    raw = _blocks(Kind.Q4_1, rows=8, seed=2)
    rows = np.random.default_rng(3).permutation(8).astype(np.intp)
    weight = expanded(decode(raw.tobytes(), Kind.Q4_1, (8, 64), rows))
    assert np.array_equal(weight, dequantize(raw, Kind.Q4_1)[rows])


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0, Kind.F16, Kind.BF16], ids=str)
def test_a_file_holds_what_the_library_reads(tmp_path: Path, kind: Kind) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", architecture="qwen2", kind=kind, head=True)
    source, theirs = read_gguf(path), library_weights(path)
    assert len(source.tensors) == len(theirs)
    for layer in range(2):
        for name, part in NAMES.items():
            prefix = "mlp" if part.startswith("ffn") else "self_attn"
            ours = source.tensors[f"model.layers.{layer}.{prefix}.{name}.weight"]
            assert np.array_equal(expanded(ours), theirs[f"blk.{layer}.{part}.weight"])
    assert np.array_equal(expanded(source.tensors["lm_head.weight"]), theirs["output.weight"])


def test_rows_of_q_and_k_are_those_before_conversion(tmp_path: Path) -> None:
    weights = weights_of("llama", head=False)
    converted = dict(weights)
    for layer in range(2):
        for part, heads in (("q", HEADS), ("k", KV_HEADS)):
            name = f"blk.{layer}.attn_{part}.weight"
            converted[name] = in_ggml_order(weights[name], heads)
    source = read_gguf(write_gguf(tmp_path / "tiny.gguf", kind=Kind.F32, weights=converted))
    for part in "qkv":
        ours = source.tensors[f"model.layers.1.self_attn.{part}_proj.weight"]
        assert np.array_equal(expanded(ours), weights[f"blk.1.attn_{part}.weight"])


@pytest.mark.parametrize("head", [False, True], ids=["tied", "head"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_the_model_is_what_transformers_loads(
    tmp_path: Path, architecture: str, head: bool
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", architecture=architecture, head=head)
    source = read_gguf(path)
    # transformers 5.23 does not read the size of Qwen3's heads and takes 128
    config = AutoConfig.for_model(**source.config) if architecture == "qwen3" else None
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, config=config, dtype=torch.float32
    ).eval()
    for name, tensor in theirs.state_dict().items():
        if name in source.tensors:
            assert np.array_equal(expanded(source.tensors[name]), tensor.numpy()), name
    assert set(theirs.state_dict()) - set(source.tensors) == (set() if head else {"lm_head.weight"})
    for key in ("rope_parameters", "tie_word_embeddings", "num_key_value_heads", "head_dim"):
        assert source.config[key] == getattr(theirs.config, key, source.config[key]), key
    assert theirs.config.rms_norm_eps == pytest.approx(source.config["rms_norm_eps"], rel=1e-6)
    ids = torch.tensor([[5, 70, 200, 3, 3, 9]])
    with torch.no_grad():
        torch.testing.assert_close(_ours(source)(ids).logits, theirs(ids).logits)


def test_tensors_are_read_anew_and_missing_ones_are_no_keys(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    source = read_gguf(path)
    assert source.tensors["model.norm.weight"] is not source.tensors["model.norm.weight"]
    assert "lm_head.weight" not in source.tensors
    with pytest.raises(KeyError):
        source.tensors["lm_head.weight"]
    data = path.read_bytes()
    for changed in (data[:-40000], data[:-1] + b"x"):
        path.write_bytes(changed)
        os.utime(path, ns=(0, 0))
        with pytest.raises(ArtefactError, match="changed"):
            source.tensors["model.norm.weight"]
    path.unlink()
    with pytest.raises(ArtefactError, match="cannot be read"):
        source.tensors["model.norm.weight"]


def test_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    weights = weights_of("llama", head=False)
    weights["output_norm.weight"][3] = np.nan
    weights["blk.1.ffn_up.weight"][0, 0] = np.inf
    source = read_gguf(write_gguf(tmp_path / "tiny.gguf", weights=weights, kind=Kind.F16))
    for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"):
        with pytest.raises(ArtefactError, match="no numbers"):
            source.tensors[name]


def _blocks(kind: Kind, *, rows: int, seed: int, scale: float = 0.01) -> np.ndarray:
    """Random uint8 (rows, two blocks or 64 numbers) of a type, with scales that are numbers."""
    random = np.random.default_rng(seed)
    _, size = GGML_QUANT_SIZES[kind]
    if kind in (Kind.F32, Kind.F16, Kind.BF16):
        numbers = random.normal(0, scale, (rows, 64)).astype(np.float32)
        if kind is Kind.BF16:
            return np.ascontiguousarray(numbers.view("<u2")[:, 1::2]).view(np.uint8)
        return numbers.astype("<f4" if kind is Kind.F32 else "<f2").view(np.uint8)
    raw = random.integers(0, 256, (rows, 2, size), np.uint8)
    if kind in CODED:
        heads = random.normal(0, scale, (rows, 2, 2 if kind is Kind.Q4_1 else 1)).astype("<f2")
        raw[..., : heads.shape[-1] * 2] = heads.view(np.uint8)
    return raw.reshape(rows, -1)


def _ours(source: DecoderSource) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**source.config)).eval()
    state = {name: torch.from_numpy(expanded(tensor)) for name, tensor in source.tensors.items()}
    missing, odd = model.load_state_dict(state, strict=False)
    assert not odd
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model
