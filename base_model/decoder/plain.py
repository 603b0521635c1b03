"""What a decoder computes, written out in numpy: the other opinion that a new graph is compared with.

It knows no cache and no operator of ONNX Runtime, and expands one matrix at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from base_model.decoder.products import Stored, Stores
from base_model.decoder.shape import Activation, DecoderShape
from base_model.decoder.source import CodedWeight, Floats
from base_model.decoder.stored import floats_of

Reals = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Plain:
    """``logits`` of one text, float32 (tokens, vocabulary).

    ``cache``: keys, then values, (kv_heads, tokens, head_size) each, layer by layer.
    """

    logits: Floats
    cache: list[Reals]


def plain_run(shape: DecoderShape, weights: Stores, ids: npt.NDArray[np.int64]) -> Plain:
    """What a decoder makes of a text's ids (tokens,)."""
    table, cache = weights[f"{shape.embeddings}.weight"], list[Reals]()
    stream: Reals = floats_of(taken_rows(table, ids), shape.hidden) * np.float32(
        shape.embedding_scale
    )
    if shape.positions:
        stream = stream + floats_of(weights[f"{shape.names.positions}.weight"], 0)[: len(ids)]
    for layer in range(shape.layers):
        path, norms = shape.layer_path(layer), shape.norms
        rows = _norm(shape, weights, path, norms.before_attention, stream)
        heads = _heads(shape, weights, layer, rows)
        cache += heads[1:]
        made = linear_rows(weights, f"{path}.{shape.names.mixing}", _attended(shape, layer, *heads))
        before = stream
        stream = stream + _after(shape, weights, path, norms.after_attention, made)
        read = before if shape.parallel else stream
        rows = _norm(shape, weights, path, norms.before_feed_forward, read)
        made = _feed_forward(shape, weights, layer, rows)
        stream = stream + _after(shape, weights, path, norms.after_feed_forward, made)
    path, name = shape.names.last_norm.rsplit(".", 1)
    rows = _norm(shape, weights, path, name, stream)
    logits = linear_rows(weights, shape.head, rows) * np.float32(shape.logits_scale)
    return Plain(logits=_capped(logits, shape.logits_cap).astype(np.float32), cache=cache)


def _after(shape: DecoderShape, weights: Stores, path: str, norm: str, made: Reals) -> Reals:
    return _norm(shape, weights, path, norm, made) * np.float32(shape.residual_scale)


def taken_rows(table: Stored, ids: npt.NDArray[np.int64]) -> Stored:
    """Rows of a stored matrix, as they are stored."""
    if isinstance(table, CodedWeight):
        return CodedWeight(bits=table.bits, codes=table.codes[ids], scales=table.scales[ids])
    return table[ids]


def linear_rows(weights: Stores, path: str, rows: Reals) -> Reals:
    """``rows`` through a linear and its bias."""
    product = rows @ floats_of(weights[f"{path}.weight"], rows.shape[1]).T
    bias = weights.get(f"{path}.bias")
    return product if bias is None else product + floats_of(bias, 0)


def _norm(shape: DecoderShape, weights: Stores, path: str, name: str, rows: Reals) -> Reals:
    """``rows`` as they are where the norm has no name."""
    if not name:
        return rows
    weight = floats_of(weights[f"{path}.{name}.weight"], 0) + np.float32(shape.unit_norms)
    if not shape.centred:
        return rms_rows(rows, weight, shape.epsilon)
    rows = rows - rows.mean(-1, keepdims=True)
    bias = floats_of(weights[f"{path}.{name}.bias"], 0)
    return rms_rows(rows, weight, shape.epsilon) + bias


def rms_rows(rows: Reals, weight: Reals, epsilon: float) -> Reals:
    """``rows`` over the root of their mean squares, times ``weight``."""
    mean = (rows.astype(np.float32) ** 2).mean(-1, keepdims=True)
    return rows / np.sqrt(mean + np.float32(epsilon)) * weight


def _heads(shape: DecoderShape, weights: Stores, layer: int, rows: Reals) -> list[Reals]:
    """Queries, keys and values, (heads, tokens, head_size) each, the first two turned by position."""
    path, tokens = f"{shape.layer_path(layer)}.self_attn", len(rows)
    parts = [
        linear_rows(weights, f"{shape.layer_path(layer)}.{name}", rows)
        for name in shape.names.attention
    ]
    if shape.by_head:
        every = parts[0].reshape(tokens, shape.heads, -1)
        parts = [part.reshape(tokens, -1) for part in np.split(every, 3, axis=2)]
    elif shape.fused:
        ends = [shape.query_size, shape.query_size + shape.key_size]
        parts = list(np.split(parts[0], ends, axis=1))
    names = ("q_norm", "k_norm") if shape.query_norm else ("", "")
    if shape.query_norm == "row":
        parts[:2] = [
            _norm(shape, weights, path, *pair) for pair in zip(names, parts[:2], strict=True)
        ]
    heads = [part.reshape(tokens, -1, shape.head_size).swapaxes(0, 1) for part in parts]
    if shape.query_norm == "head":
        heads[:2] = [
            _norm(shape, weights, path, *pair) for pair in zip(names, heads[:2], strict=True)
        ]
    if (rope := shape.ropes[layer]) is not None:
        tables = rope.tables(shape.head_size, tokens)
        heads[:2] = [_turned(part, *tables) for part in heads[:2]]
    return heads


def _attended(shape: DecoderShape, layer: int, queries: Reals, keys: Reals, values: Reals) -> Reals:
    """Rows (tokens, query_size) of what each token takes from those that it sees."""
    tokens, shared = queries.shape[1], shape.heads // shape.kv_heads
    keys, values = np.repeat(keys, shared, 0), np.repeat(values, shared, 0)
    scores = _capped(
        queries @ keys.swapaxes(1, 2) * np.float32(shape.attention_scale), shape.scores_cap
    )
    scores = np.where(_seen(tokens, shape.windows[layer]), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return (shares @ values).swapaxes(0, 1).reshape(tokens, -1)


def _turned(heads: Reals, cosines: Floats, sines: Floats) -> Reals:
    width = 2 * cosines.shape[1]
    first, second = np.split(heads[..., :width], 2, axis=-1)
    turned = [first * cosines - second * sines, second * cosines + first * sines]
    return np.concatenate([*turned, heads[..., width:]], axis=-1)


def _seen(tokens: int, window: int) -> npt.NDArray[np.bool_]:
    """(tokens, tokens): whether the row's token sees the column's."""
    distance = np.arange(tokens)[:, None] - np.arange(tokens)
    return (distance >= 0) & (distance < (window or tokens))


def _feed_forward(shape: DecoderShape, weights: Stores, layer: int, rows: Reals) -> Reals:
    path = shape.layer_path(layer)
    inner = [linear_rows(weights, f"{path}.{name}", rows) for name in shape.names.widening]
    if shape.gated and len(inner) == 1:
        inner = list(np.split(inner[0], 2, axis=1))
    active = active_rows(shape.activation, inner[0])
    active = active * inner[1] if shape.gated else active
    return linear_rows(weights, f"{path}.{shape.names.narrowing}", active)


def active_rows(activation: Activation, rows: Reals) -> Reals:
    """An activation, number by number."""
    match activation:
        case "relu":
            return np.maximum(rows, 0)
        case "silu":
            return rows / (1 + np.exp(-rows))
        case "gelu":
            return rows * (1 + np.vectorize(math.erf)(rows / math.sqrt(2))) / 2
        case "gelu_tanh":
            inner = math.sqrt(2 / math.pi) * (rows + 0.044715 * rows**3)
            return rows * (1 + np.tanh(inner)) / 2


def _capped(values: Reals, cap: float) -> Reals:
    return cap * np.tanh(values / cap) if cap else values
