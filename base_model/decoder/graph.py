"""The graph that generates, node by node: new tokens and a cache in, logits and the grown cache out.

The contract is onnxruntime-genai's (``protocol.decoder_manifest``). Hidden states are rows, one per token of
all texts: the last product of a low-rank branch then adds onto the base's result in one Gemm, as in an
encoder's graph (``base_model.graph_linears``). Only attention sees texts and positions: texts of unequal
length are padded at their ends, and only in the piece that begins them. Tensors are the very bytes of
``weights.safetensors``, those of linears that read the same rows one behind the other; embeddings in codes
are read where the output layer multiplies by them.
"""

from __future__ import annotations

from onnx import TensorProto

from base_model.decoder.attention import Attention, cached_attention
from base_model.decoder.nodes import Nodes
from base_model.decoder.parts import activated, added_norm, norm, word_rows
from base_model.decoder.products import (
    FLOATS,
    Building,
    Stores,
    linear,
    linears,
    product,
    row_shape,
    scaled,
)
from base_model.decoder.prompt import with_prompt, word_ids
from base_model.decoder.shape import EMBEDDINGS, LAST_NORM, DecoderShape, layer_path
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
        sizes=shape.matrices(),
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
    counts(nodes)
    hidden = embedded(building, word_ids(building)) if slots else embedded(building)
    hidden = with_prompt(building, hidden) if slots else hidden
    hidden = layers(building, hidden, cached_attention)
    _logits(building, last_rows(nodes, hidden))
    nodes.output(LOGITS, TensorProto.FLOAT, ["rows", 1, shape.vocabulary])
    for layer in range(shape.layers):
        for part in ("key", "value"):
            grown: list[int | str] = ["rows", shape.kv_heads, "total", shape.head_size]
            nodes.output(f"present.{layer}.{part}", TensorProto.FLOAT, grown)
    return nodes


def counts(nodes: Nodes) -> None:
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
    rows = word_rows(building, EMBEDDINGS, ids)
    return scaled(building.nodes, rows, building.shape.embedding_scale, STREAM)


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
    return scaled(building.nodes, output, building.shape.residual_scale, f"{output}/scaled")


def _norm(building: Building, value: str, path: str) -> str:
    shape = building.shape
    return norm(building, value, path, epsilon=shape.epsilon, unit=shape.unit_norms)


def _added_norm(building: Building, stream: str, added: str, path: str) -> tuple[str, str]:
    """(the norm of stream + added, stream + added)."""
    shape = building.shape
    return added_norm(building, stream, added, path, epsilon=shape.epsilon, unit=shape.unit_norms)


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
    active = activated(building, shape.activation, gate, path)
    active = nodes.add("Mul", [active, up], f"{path}/gated")
    return linear(building, f"{path}.down_proj", active)


def last_rows(nodes: Nodes, hidden: str) -> str:
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
    logits = scaled(nodes, logits, shape.logits_scale, "logits/scaled")
    if shape.logits_cap:
        cap = nodes.number("logits/cap", shape.logits_cap)
        logits = nodes.add("Div", [logits, cap], "logits/shrunk")
        logits = nodes.add("Tanh", [logits], "logits/bent")
        logits = nodes.add("Mul", [logits, cap], "logits/capped")
    nodes.add("Unsqueeze", [logits, nodes.numbers("one", [1])], LOGITS)
