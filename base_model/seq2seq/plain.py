"""What an encoder with a decoder computes, written out in numpy: what new graphs are compared with.

It knows no cache and no operator of ONNX Runtime, and expands one matrix at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from base_model.decoder.plain import Reals, active_rows, linear_rows, rms_rows, taken_rows
from base_model.decoder.products import Stores
from base_model.decoder.source import Floats
from base_model.decoder.stored import floats_of
from base_model.seq2seq.shape import (
    DECODER,
    ENCODER,
    LAST_NORM,
    POSITIONS,
    SHARED,
    Seq2SeqShape,
    blocks,
)

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Plain:
    """``states`` (source, hidden) of what is read, ``logits`` (tokens, vocabulary) behind what is written.

    ``cross`` and ``cache``: keys, then values, (heads, tokens, head_size) each, layer by layer.
    """

    states: Reals
    cross: list[Reals]
    cache: list[Reals]
    logits: Floats


def plain_run(shape: Seq2SeqShape, weights: Stores, source: Ids, written: Ids) -> Plain:
    """What becomes of ids (source,) that are read, and of those (tokens,) that were written."""
    stream = _words(shape, weights, source)
    bias = _bias(shape, weights, ENCODER, len(source))
    for layer in range(shape.encoder_layers):
        attention, dense = blocks(ENCODER, layer)
        rows = _norm(shape, weights, _norm_of(attention), stream)
        heads = [_heads(shape, weights, f"{attention}.{name}", rows) for name in "qkv"]
        stream = stream + _mixed(weights, attention, heads, bias)
        stream = stream + _feed_forward(shape, weights, dense, stream)
    states = _norm(shape, weights, f"{ENCODER}.{LAST_NORM}", stream)
    cross, cache = list[Reals](), list[Reals]()
    stream, bias = _words(shape, weights, written), _bias(shape, weights, DECODER, len(written))
    for layer in range(shape.layers):
        own, other, dense = blocks(DECODER, layer)
        rows = _norm(shape, weights, _norm_of(own), stream)
        heads = [_heads(shape, weights, f"{own}.{name}", rows) for name in "qkv"]
        cache += heads[1:]
        stream = stream + _mixed(weights, own, heads, bias)
        rows = _norm(shape, weights, _norm_of(other), stream)
        queries = _heads(shape, weights, f"{other}.q", rows)
        pair = [_heads(shape, weights, f"{other}.{name}", states) for name in "kv"]
        cross += pair
        stream = stream + _mixed(weights, other, [queries, *pair], np.zeros((), np.float32))
        stream = stream + _feed_forward(shape, weights, dense, stream)
    rows = _norm(shape, weights, f"{DECODER}.{LAST_NORM}", stream) * np.float32(shape.logits_scale)
    logits = linear_rows(weights, shape.head, rows).astype(np.float32)
    return Plain(states=states, cross=cross, cache=cache, logits=logits)


def _words(shape: Seq2SeqShape, weights: Stores, ids: Ids) -> Reals:
    return floats_of(taken_rows(weights[f"{SHARED}.weight"], ids), shape.hidden)


def _bias(shape: Seq2SeqShape, weights: Stores, stack: str, tokens: int) -> Reals:
    """(heads, tokens, tokens): what is added to scores; -inf in a decoder for what comes later."""
    ahead = stack == ENCODER
    apart = np.arange(tokens) - np.arange(tokens)[:, None]
    near = np.clip(apart, -shape.distance, shape.distance if ahead else 0)
    rows = shape.distances(ahead=ahead)[near + shape.distance if ahead else -near]
    table = floats_of(weights[f"{stack}.{POSITIONS}.weight"], shape.heads)
    added = table[rows].transpose(2, 0, 1)
    return added if ahead else np.where(apart <= 0, added, -np.inf)


def _norm_of(block: str) -> str:
    return f"{block.rpartition('.')[0]}.layer_norm"


def _norm(shape: Seq2SeqShape, weights: Stores, path: str, rows: Reals) -> Reals:
    return rms_rows(rows, floats_of(weights[f"{path}.weight"], 0), shape.epsilon)


def _heads(shape: Seq2SeqShape, weights: Stores, path: str, rows: Reals) -> Reals:
    """(heads, tokens, head_size)."""
    product = linear_rows(weights, path, rows)
    return product.reshape(len(rows), shape.heads, shape.head_size).swapaxes(0, 1)


def _mixed(weights: Stores, path: str, heads: list[Reals], bias: Reals) -> Reals:
    """What a block of attention adds, (tokens, hidden), of heads of queries, keys and values."""
    queries, keys, values = heads
    scores = queries @ keys.swapaxes(1, 2) + bias
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    rows = (shares @ values).swapaxes(0, 1).reshape(queries.shape[1], -1)
    return linear_rows(weights, f"{path}.o", rows)


def _feed_forward(shape: Seq2SeqShape, weights: Stores, path: str, stream: Reals) -> Reals:
    rows = _norm(shape, weights, _norm_of(path), stream)
    first = linear_rows(weights, f"{path}.wi_0" if shape.gated else f"{path}.wi", rows)
    active = active_rows(shape.activation, first)
    if shape.gated:
        active = active * linear_rows(weights, f"{path}.wi_1", rows)
    return linear_rows(weights, f"{path}.wo", active)
