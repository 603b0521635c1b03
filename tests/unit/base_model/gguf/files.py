"""Small GGUF files as llama.cpp's own writer makes them: random weights, a vocabulary of bytes and merges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize
from gguf.quants import quantize
from tokenizers import pre_tokenizers

from base_model.decoder.source import CodedWeight, Floats
from protocol.codes import unpack

HIDDEN, INNER, HEADS, KV_HEADS, SIZE, LAYERS = 64, 96, 4, 2, 16, 2
WORDS = ["<|end|>", "<|user|>", "<think>"]  # two that are special, one that is not
PIECES = (
    "th",
    "the",
    "in",
    "er",
    "on",
    "Ġt",
    "Ġth",
    "Ġthe",
    "ĠĠ",
    "ĠĠĠ",
    "ĠĠĠĠ",
    "12",
    "123",
    "Ċ",
    "ĊĊ",
    "Ġ1",
    "'s",
)
TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|end|>{% endfor %}"


def merges_of(pieces: Iterable[str] = PIECES) -> list[tuple[str, str]]:
    """A merge for every piece: all but its last character, and that."""
    return [(piece[:-1], piece[-1]) for piece in pieces if len(piece) > 1]


def tokens_of(words: Iterable[str] = WORDS) -> list[str]:
    """Special words first, then bytes, then what merges lead to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*words, *alphabet, *(first + last for first, last in merges_of())]


def weights_of(architecture: str, *, head: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 weights by llama.cpp's names; shapes (out, in)."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(tokens_of()), HIDDEN)}
    for layer in range(LAYERS):
        parts: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (HIDDEN,),
            "attn_q.weight": (HEADS * SIZE, HIDDEN),
            "attn_k.weight": (KV_HEADS * SIZE, HIDDEN),
            "attn_v.weight": (KV_HEADS * SIZE, HIDDEN),
            "attn_output.weight": (HIDDEN, HEADS * SIZE),
            "ffn_norm.weight": (HIDDEN,),
            "ffn_gate.weight": (INNER, HIDDEN),
            "ffn_up.weight": (INNER, HIDDEN),
            "ffn_down.weight": (HIDDEN, INNER),
        }
        if architecture == "qwen2":
            parts |= {f"attn_{part}.bias": parts[f"attn_{part}.weight"][:1] for part in "qkv"}
        if architecture == "qwen3":
            parts |= {f"attn_{part}_norm.weight": (SIZE,) for part in "qk"}
        shapes |= {f"blk.{layer}.{part}": shape for part, shape in parts.items()}
    shapes["output_norm.weight"] = (HIDDEN,)
    if head:
        shapes["output.weight"] = shapes["token_embd.weight"]
    return {
        name: random.normal(1.0 if name.endswith("norm.weight") else 0.0, 0.05, shape).astype(
            np.float32
        )
        for name, shape in shapes.items()
    }


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    kind: GGMLQuantizationType = GGMLQuantizationType.Q4_1,
    weights: Mapping[str, np.ndarray] | None = None,
    head: bool = False,
    pre: str | None = "smollm",
    keys: Mapping[str, Any] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """A file whose matrices are of ``kind`` and its embeddings Q8_0; ``keys`` replace or, None, leave out."""
    writer = GGUFWriter(path, architecture)
    tokens = tokens_of()
    values: dict[str, Any] = {
        "general.name": "Tiny",
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.context_length": 128,
        f"{architecture}.embedding_length": HIDDEN,
        f"{architecture}.feed_forward_length": INNER,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": KV_HEADS,
        f"{architecture}.attention.key_length": SIZE if architecture == "qwen3" else None,
        f"{architecture}.rope.freq_base": 5000.0,
        f"{architecture}.rope.dimension_count": SIZE,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 4, *([1] * (len(tokens) - 3))],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges_of()],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
        **(keys or {}),
    }
    for name, value in values.items():
        if value is not None:
            _add(writer, name, value)
    weights = weights if weights is not None else weights_of(architecture, head=head)
    for name, weight in {**weights, **(extra or {})}.items():
        _add_tensor(writer, name, weight, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, name: str, value: Any) -> None:
    if name == "general.alignment":
        writer.add_custom_alignment(value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def _add_tensor(
    writer: GGUFWriter, name: str, weight: np.ndarray, kind: GGMLQuantizationType
) -> None:
    if weight.ndim == 1:
        writer.add_tensor(name, weight)
        return
    kind = GGMLQuantizationType.Q8_0 if name in ("token_embd.weight", "output.weight") else kind
    if kind is GGMLQuantizationType.F32:
        writer.add_tensor(name, weight)
    else:
        writer.add_tensor(name, quantize(weight, kind), raw_dtype=kind)


def library_weights(path: Path) -> dict[str, np.ndarray]:
    """Every tensor by llama.cpp's name, float32 (out, in), as the ``gguf`` package computes it."""
    return {
        str(tensor.name): np.array(dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(
            tensor.shape[::-1].tolist()
        )
        for tensor in GGUFReader(path).tensors
    }


def expanded(weight: Floats | CodedWeight) -> Floats:
    """float32 (out, in), by the formula that CodedWeight states."""
    if not isinstance(weight, CodedWeight):
        return weight
    codes = unpack(weight.codes, bits=weight.bits).astype(np.float32)
    blocks = (codes - np.float32(2 ** (weight.bits - 1))) * weight.scales[..., None]
    if weight.offsets is not None:
        blocks += weight.offsets[..., None]
    return np.asarray(blocks.reshape(len(blocks), -1), np.float32)


def in_ggml_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k as llama.cpp's converter lays them: within a head, the two halves take turns."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
