"""The graph that generates, node by node: new tokens and a cache in, logits and the grown cache out.

The contract is onnxruntime-genai's (``protocol.decoder_manifest``). Hidden states are rows, one per token of
all texts: the last product of a low-rank branch then adds onto the base's result in one Gemm, as in an
encoder's graph (``base_model.graph_linears``). Only attention sees texts and positions: texts of unequal
length are padded at their ends, and only in the piece that begins them. Tensors are the very bytes of
``weights.safetensors``, those of linears that read the same rows one behind the other; embeddings in codes
are read where the output layer multiplies by them.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from base_model.decoder.attention import Attention, cached_attention
from base_model.decoder.nodes import Nodes
from base_model.decoder.products import (
    BLOCK,
    FLOATS,
    Building,
    Stores,
    codes_of,
    linear,
    linears,
    product,
    row_shape,
)
from base_model.decoder.prompt import with_prompt, word_ids
from base_model.decoder.shape import EMBEDDINGS, LAST_NORM, DecoderShape, layer_path
from base_model.decoder.source import CodedWeight
from protocol.decoder_manifest import IDS, LOGITS, MASK

STREAM = "hidden"


def generating_graph(
    shape: DecoderShape,
    weights: Stores,
    *,
    slots: bool,
    level: int = FLOATS,
) -> Nodes:
    """The graph of a decoder whose tensors are ``weights``, by Hugging Face's names.

    ``slots=False`` leaves out the optional inputs. ``level``: what products with codes read
    (``base_model.decoder.products``).
    """
    nodes = Nodes("decoder")
    building = Building(
        shape=shape,
        weights=weights,
        nodes=nodes,
        slots=slots,
        level=level,
    )
    nodes.input(IDS, TensorProto.INT64, ["rows", "new"])
    nodes.input(MASK, TensorProto.INT64, ["rows", "total"])
    for layer in range(shape.layers):
        for part in ("key", "value"):
            cached: list[int | str] = ["rows", shape.kv_heads, "past", shape.head_size]
            nodes.input(f"past_key_values.{layer}.{part}", TensorProto.FLOAT, cached)
    _counts(nodes)
    hidden = embedded(building, word_ids(building)) if slots else embedded(building)
    hidden = with_prompt(building, hidden) if slots else hidden
    hidden = layers(building, hidden, cached_attention)
    _logits(building, _last(nodes, hidden))
    nodes.output(LOGITS, TensorProto.FLOAT, ["rows", 1, shape.vocabulary])
    for layer in range(shape.layers):
        for part in ("key", "value"):
            grown: list[int | str] = ["rows", shape.kv_heads, "total", shape.head_size]
            nodes.output(f"present.{layer}.{part}", TensorProto.FLOAT, grown)
    return nodes


def _counts(nodes: Nodes) -> None:
    """The shape of texts, and from the mask each row's last position and the length of the cache."""
    tokens = nodes.add("Shape", [IDS], "tokens")
    nodes.add("Concat", [tokens, nodes.numbers("last", [-1])], "tokens/any", axis=0)
    one = nodes.numbers("one", [1])
    counted = nodes.add("ReduceSum", [MASK, one], "mask/sum", keepdims=0)
    last = nodes.add("Sub", [counted, one], "mask/last")
    nodes.add("Cast", [last], "seqlens_k", to=TensorProto.INT32)
    sizes = nodes.add("Shape", [MASK], "mask/shape")
    total = nodes.add("Gather", [sizes, nodes.numbers("one/scalar", 1)], "mask/total", axis=0)
    nodes.add("Cast", [total], "total_sequence_length", to=TensorProto.INT32)


def embedded(building: Building, ids: str = IDS) -> str:
    """Rows of word embeddings, (tokens, hidden)."""
    nodes, shape = building.nodes, building.shape
    name, table = f"{EMBEDDINGS}/words", building.weights[f"{EMBEDDINGS}.weight"]
    if isinstance(table, CodedWeight):
        codes, scales = codes_of(nodes, EMBEDDINGS, table)
        deep = nodes.add("Unsqueeze", [scales, nodes.numbers("last", [-1])], f"{scales}/deep")
        settings = {"gather_axis": 0, "quantize_axis": 2, "block_size": BLOCK, "bits": table.bits}
        words = f"{EMBEDDINGS}/blocks"
        nodes.add_contrib("GatherBlockQuantized", [codes, ids, deep], [words], **settings)
        padded = table.codes.shape[1] * BLOCK
        words = nodes.add("Reshape", [words, row_shape(nodes, padded)], f"{EMBEDDINGS}/padded")
        if padded != shape.hidden:
            ends = [nodes.numbers(f"slice/{key}", [at]) for key, at in _cut(shape.hidden)]
            words = nodes.add("Slice", [words, *ends], f"{EMBEDDINGS}/cut")
    else:
        words = nodes.add("Gather", [nodes.tensor(f"{EMBEDDINGS}.weight", table), ids], name)
        if table.dtype == np.float16:
            words = nodes.add("Cast", [words], f"{name}/wide", to=TensorProto.FLOAT)
        words = nodes.add("Reshape", [words, row_shape(nodes, shape.hidden)], f"{name}/rows")
    return _scaled(nodes, words, shape.embedding_scale, STREAM)


def _cut(width: int) -> tuple[tuple[str, int], ...]:
    """The inputs of a Slice that keeps the first ``width`` of the last dimension."""
    return ("start", 0), ("end", width), ("axis", 1)


def layers(building: Building, stream: str, attention: Attention) -> str:
    """The last layer's hidden states behind the last norm.

    What a block adds to the stream is added where the next norm is computed: one pass for both.
    """
    norms, added = building.shape.norms, ""
    for layer in range(building.shape.layers):
        path = layer_path(layer)
        rows, stream = _before(building, stream, added, path, norms.before_attention, "attention")
        output = _attended(building, layer, rows, attention)
        added = _after(building, output, path, norms.after_attention)
        rows, stream = _before(building, stream, added, path, norms.before_feed_forward, "mlp")
        output = _fed_forward(building, path, rows)
        added = _after(building, output, path, norms.after_feed_forward)
    return _added_norm(building, stream, added, LAST_NORM)[0]


def _before(
    building: Building, stream: str, added: str, path: str, norm: str, block: str
) -> tuple[str, str]:
    """(what a block reads, the stream), with what the block before it has ``added``."""
    if norm:
        return _added_norm(building, stream, added, f"{path}.{norm}")
    if added:
        stream = building.nodes.add("Add", [stream, added], f"{path}/{block}/stream")
    return stream, stream


def _after(building: Building, output: str, path: str, norm: str) -> str:
    """What a block adds to the stream."""
    if norm:
        output = _norm(building, output, f"{path}.{norm}")
    return _scaled(building.nodes, output, building.shape.residual_scale, f"{output}/scaled")


def _norm_weight(building: Building, path: str) -> str:
    name = f"{path}.weight"
    weight = building.weights[name]
    assert not isinstance(weight, CodedWeight)
    if building.shape.unit_norms:
        return building.nodes.tensor(f"{name}/unit", weight + np.float32(1))
    return building.nodes.tensor(name, weight)


def _norm(building: Building, value: str, path: str, suffix: str = "") -> str:
    weight = _norm_weight(building, path)
    return building.nodes.add(
        "SimplifiedLayerNormalization",
        [value, weight],
        f"{path}{suffix}/normed",
        axis=-1,
        epsilon=building.shape.epsilon,
        stash_type=1,
    )


def _added_norm(building: Building, stream: str, added: str, path: str) -> tuple[str, str]:
    """(the norm of stream + added, stream + added)."""
    if not added:
        return _norm(building, stream, path), stream
    normed, total = f"{path}/normed", f"{path}/stream"
    if building.derivable:
        total = building.nodes.add("Add", [stream, added], total)
        return _norm(building, total, path), total
    building.nodes.add_contrib(
        "SkipSimplifiedLayerNormalization",
        [stream, added, _norm_weight(building, path)],
        [normed, "", "", total],
        epsilon=building.shape.epsilon,
    )
    return normed, total


def _attended(building: Building, layer: int, rows: str, attention: Attention) -> str:
    shape, path = building.shape, f"{layer_path(layer)}.self_attn"
    if shape.fused:
        queries, keys, values = (f"{path}.{name}" for name in ("queries", "keys", "values"))
        sizes = shape.query_size, shape.key_size, shape.key_size
        every = linear(building, f"{path}.qkv_proj", rows)
        building.nodes.split(every, [queries, keys, values], sizes)
    else:
        paths = [f"{path}.{name}_proj" for name in "qkv"]
        queries, keys, values = linears(building, f"{path}.qkv_proj", paths, rows)
    if shape.query_norm:
        queries = _query_norm(building, queries, f"{path}.q_norm", shape.query_size)
        keys = _query_norm(building, keys, f"{path}.k_norm", shape.key_size)
    attended = attention(building, layer, queries, keys, values)
    return linear(building, f"{path}.o_proj", attended)


def _query_norm(building: Building, value: str, path: str, width: int) -> str:
    """The norm of queries or keys, over each head or over the row."""
    if building.shape.query_norm == "row":
        return _norm(building, value, path)
    nodes, size = building.nodes, building.shape.head_size
    heads = nodes.add("Reshape", [value, row_shape(nodes, size)], f"{path}/heads")
    normed = _norm(building, heads, path)
    return nodes.add("Reshape", [normed, row_shape(nodes, width)], f"{path}/rows")


def _fed_forward(building: Building, path: str, rows: str) -> str:
    nodes, shape = building.nodes, building.shape
    path = f"{path}.mlp"
    if shape.fused:
        both = linear(building, f"{path}.gate_up_proj", rows)
        gate, up = f"{path}.gate", f"{path}.up"
        nodes.split(both, [gate, up])
    else:
        paths = [f"{path}.{name}_proj" for name in ("gate", "up")]
        gate, up = linears(building, f"{path}.gate_up_proj", paths, rows)
    active = nodes.add("Mul", [_active(building, gate, path), up], f"{path}/gated")
    return linear(building, f"{path}.down_proj", active)


def _active(building: Building, gate: str, path: str) -> str:
    nodes, output = building.nodes, f"{path}/active"
    match building.shape.activation:
        case "silu" if building.derivable:  # one operator, of which a gradient keeps less
            nodes.add_contrib("QuickGelu", [gate], [output], alpha=1.0)
            return output
        case "silu":
            half = nodes.add("Sigmoid", [gate], f"{path}/sigmoid")
            return nodes.add("Mul", [gate, half], output)
        case "gelu":
            return nodes.add("Gelu", [gate], output)
        case "gelu_tanh":
            return nodes.add("Gelu", [gate], output, approximate="tanh")


def _scaled(nodes: Nodes, value: str, scale: float, output: str) -> str:
    if scale == 1:
        return value
    return nodes.add("Mul", [value, nodes.number(f"{output}/by", scale)], output)


def _last(nodes: Nodes, hidden: str) -> str:
    """Of the rows of all tokens those of each text's last one, (rows, hidden): nobody asks for more logits.

    A piece that begins padded texts has their last tokens somewhere in it, any other at its end.
    """
    zero, one = nodes.numbers("zero/scalar", 0), nodes.numbers("one/scalar", 1)
    texts = nodes.add("Gather", ["tokens", zero], "last/texts", axis=0)
    new = nodes.add("Gather", ["tokens", one], "last/new", axis=0)
    past = nodes.add("Sub", ["mask/total", new], "last/past")
    inside = nodes.add("Sub", ["mask/last", past], "last/inside")
    inside = nodes.add("Max", [inside, zero], "last/place")
    starts = nodes.add("Range", [zero, texts, one], "last/numbers")
    starts = nodes.add("Mul", [starts, new], "last/starts")
    places = nodes.add("Add", [starts, inside], "last/places")
    return nodes.add("Gather", [hidden, places], "last/hidden", axis=0)


def _logits(building: Building, rows: str) -> None:
    nodes, shape = building.nodes, building.shape
    logits = product(building, shape.head, rows, "logits/rows")
    logits = _scaled(nodes, logits, shape.logits_scale, "logits/scaled")
    if shape.logits_cap:
        cap = nodes.number("logits/cap", shape.logits_cap)
        logits = nodes.add("Div", [logits, cap], "logits/shrunk")
        logits = nodes.add("Tanh", [logits], "logits/bent")
        logits = nodes.add("Mul", [logits, cap], "logits/capped")
    nodes.add("Unsqueeze", [logits, nodes.numbers("one", [1])], LOGITS)
