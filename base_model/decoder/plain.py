"""What a decoder computes, written out in numpy: the other opinion that a new graph is compared with.

It knows no cache and no operator of ONNX Runtime, and expands one matrix at a time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from base_model.decoder.products import Stored, Stores
from base_model.decoder.shape import EMBEDDINGS, LAST_NORM, DecoderShape, layer_path
from base_model.decoder.source import CodedWeight, Floats
from base_model.decoder.stored import floats_of

Reals = npt.NDArray[np.floating[Any]]


def plain_logits(shape: DecoderShape, weights: Stores, ids: npt.NDArray[np.int64]) -> Floats:
    """Logits float32 (tokens, vocabulary) of one text's ids (tokens,)."""
    table = weights[f"{EMBEDDINGS}.weight"]
    stream: Reals = floats_of(_taken(table, ids), shape.hidden) * np.float32(shape.embedding_scale)
    for layer in range(shape.layers):
        path, norms = layer_path(layer), shape.norms
        for before, after, block in (
            (norms.before_attention, norms.after_attention, _attention),
            (norms.before_feed_forward, norms.after_feed_forward, _feed_forward),
        ):
            rows = _norm(shape, weights, f"{path}.{before}", stream) if before else stream
            output = block(shape, weights, layer, rows)
            if after:
                output = _norm(shape, weights, f"{path}.{after}", output)
            stream = stream + output * np.float32(shape.residual_scale)
    rows = _norm(shape, weights, LAST_NORM, stream)
    logits = _linear(weights, shape.head, rows) * np.float32(shape.logits_scale)
    return _capped(logits, shape.logits_cap).astype(np.float32)


def _taken(table: Stored, ids: npt.NDArray[np.int64]) -> Stored:
    if isinstance(table, CodedWeight):
        return CodedWeight(bits=table.bits, codes=table.codes[ids], scales=table.scales[ids])
    return table[ids]


def _linear(weights: Stores, path: str, rows: Reals) -> Reals:
    product = rows @ floats_of(weights[f"{path}.weight"], rows.shape[1]).T
    bias = weights.get(f"{path}.bias")
    return product if bias is None else product + floats_of(bias, 0)


def _norm(shape: DecoderShape, weights: Stores, path: str, rows: Reals) -> Reals:
    weight = floats_of(weights[f"{path}.weight"], 0) + np.float32(shape.unit_norms)
    mean = (rows.astype(np.float32) ** 2).mean(-1, keepdims=True)
    return rows / np.sqrt(mean + np.float32(shape.epsilon)) * weight


def _attention(shape: DecoderShape, weights: Stores, layer: int, rows: Reals) -> Reals:
    path, tokens = f"{layer_path(layer)}.self_attn", len(rows)
    if shape.fused:
        ends = [shape.query_size, shape.query_size + shape.key_size]
        parts = np.split(_linear(weights, f"{path}.qkv_proj", rows), ends, axis=1)
    else:
        parts = [_linear(weights, f"{path}.{name}_proj", rows) for name in "qkv"]
    if shape.query_norm == "row":
        parts[:2] = [
            _norm(shape, weights, f"{path}.{n}_norm", p) for n, p in zip("qk", parts, strict=False)
        ]
    heads = [part.reshape(tokens, -1, shape.head_size).swapaxes(0, 1) for part in parts]
    if shape.query_norm == "head":
        heads[:2] = [
            _norm(shape, weights, f"{path}.{n}_norm", p) for n, p in zip("qk", heads, strict=False)
        ]
    if (rope := shape.ropes[layer]) is not None:
        tables = rope.tables(shape.head_size, tokens)
        heads[:2] = [_turned(part, *tables) for part in heads[:2]]
    queries, keys, values = heads
    keys, values = (np.repeat(part, shape.heads // shape.kv_heads, 0) for part in (keys, values))
    scores = queries @ keys.swapaxes(1, 2) * np.float32(shape.attention_scale)
    scores = np.where(
        _seen(tokens, shape.windows[layer]), _capped(scores, shape.scores_cap), -np.inf
    )
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return _linear(weights, f"{path}.o_proj", (shares @ values).swapaxes(0, 1).reshape(tokens, -1))


def _turned(heads: Reals, cosines: Floats, sines: Floats) -> Reals:
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate(
        [first * cosines - second * sines, second * cosines + first * sines], axis=-1
    )


def _seen(tokens: int, window: int) -> npt.NDArray[np.bool_]:
    """(tokens, tokens): whether the row's token sees the column's."""
    distance = np.arange(tokens)[:, None] - np.arange(tokens)
    return (distance >= 0) & (distance < (window or tokens))


def _feed_forward(shape: DecoderShape, weights: Stores, layer: int, rows: Reals) -> Reals:
    path = f"{layer_path(layer)}.mlp"
    if shape.fused:
        gate, up = np.split(_linear(weights, f"{path}.gate_up_proj", rows), 2, axis=1)
    else:
        gate, up = (_linear(weights, f"{path}.{name}_proj", rows) for name in ("gate", "up"))
    match shape.activation:
        case "silu":
            active = gate / (1 + np.exp(-gate))
        case "gelu":
            active = gate * (1 + np.vectorize(math.erf)(gate / math.sqrt(2))) / 2
        case "gelu_tanh":
            inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
            active = gate * (1 + np.tanh(inner)) / 2
    return _linear(weights, f"{path}.down_proj", active * up)


def _capped(values: Reals, cap: float) -> Reals:
    return cap * np.tanh(values / cap) if cap else values
