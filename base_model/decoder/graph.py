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

from base_model.decoder.attention import Attention, cached_attention, cached_positions
from base_model.decoder.nodes import Nodes
from base_model.decoder.norms import added_layer_norm, layer_norm
from base_model.decoder.parts import activated, added_norm, norm, word_rows
from base_model.decoder.positions import with_positions
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
from base_model.decoder.projections import in_three
from base_model.decoder.prompt import with_prompt, word_ids
from base_model.decoder.shape import DecoderShape
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
        ranked=True,
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
    hidden = with_positions(building, hidden, cached_positions)
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
    rows = word_rows(building, building.shape.embeddings, ids)
    return scaled(building.nodes, rows, building.shape.embedding_scale, STREAM)


def layers(building: Building, stream: str, attention: Attention) -> str:
    """The last layer's hidden states behind the last norm.

    What a block adds to the stream is added where the next norm is computed: one pass for both.
    """
    shape, added = building.shape, ""
    norms = shape.norms
    for layer in range(shape.layers):
        path = shape.layer_path(layer)
        rows, stream = _before(building, stream, added, path, norms.before_attention, "attention")
        output = _attended(building, layer, rows, attention)
        if shape.parallel:
            added = _beside(building, layer, stream, output)
            continue
        added = _after(building, output, path, norms.after_attention)
        rows, stream = _before(building, stream, added, path, norms.before_feed_forward, "mlp")
        output = _fed_forward(building, path, rows)
        added = _after(building, output, path, norms.after_feed_forward)
    return _added_norm(building, stream, added, shape.names.last_norm)[0]


def _beside(building: Building, layer: int, stream: str, attended: str) -> str:
    """What attention and a feed-forward block that reads the same stream add to it."""
    path = building.shape.layer_path(layer)
    rows = _norm(building, stream, f"{path}.{building.shape.norms.before_feed_forward}")
    output = _fed_forward(building, path, rows)
    return building.nodes.add("Add", [attended, output], f"{path}/added")


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
    if shape.centred:
        return layer_norm(building, value, path, epsilon=shape.epsilon)
    return norm(building, value, path, epsilon=shape.epsilon, unit=shape.unit_norms)


def _added_norm(building: Building, stream: str, added: str, path: str) -> tuple[str, str]:
    """(the norm of stream + added, stream + added)."""
    shape = building.shape
    if shape.centred:
        return added_layer_norm(building, stream, added, path, epsilon=shape.epsilon)
    return added_norm(building, stream, added, path, epsilon=shape.epsilon, unit=shape.unit_norms)


def _attended(building: Building, layer: int, rows: str, attention: Attention) -> str:
    shape, path = building.shape, building.shape.layer_path(layer)
    if shape.fused:
        every = linear(building, f"{path}.{shape.names.attention[0]}", rows)
        queries, keys, values = in_three(building, f"{path}.self_attn", every)
    else:
        paths = [f"{path}.{name}" for name in shape.names.attention]
        queries, keys, values = linears(building, f"{path}.self_attn.qkv_proj", paths, rows)
    if shape.query_norm:
        queries = _query_norm(building, queries, f"{path}.self_attn.q_norm", shape.query_size)
        keys = _query_norm(building, keys, f"{path}.self_attn.k_norm", shape.key_size)
    attended = attention(building, layer, queries, keys, values)
    return linear(building, f"{path}.{shape.names.mixing}", attended)


def _query_norm(building: Building, value: str, path: str, width: int) -> str:
    """The norm of queries or keys, over each head or over the row."""
    if building.shape.query_norm == "row":
        return _norm(building, value, path)
    nodes, size = building.nodes, building.shape.head_size
    heads = nodes.add("Reshape", [value, row_shape(nodes, size)], f"{path}/heads")
    normed = _norm(building, heads, path)
    return nodes.add("Reshape", [normed, row_shape(nodes, width)], f"{path}/rows")


def _fed_forward(building: Building, path: str, rows: str) -> str:
    nodes, shape, block = building.nodes, building.shape, f"{path}.mlp"
    paths = [f"{path}.{name}" for name in shape.names.widening]
    if len(paths) > 1:
        inner = linears(building, f"{block}.gate_up_proj", paths, rows)
    else:
        inner = [linear(building, paths[0], rows)]
    if shape.gated and len(inner) == 1:
        both, inner = inner[0], [f"{block}.gate", f"{block}.up"]
        nodes.split(both, inner)
    active = activated(building, shape.activation, inner[0], block)
    if shape.gated:
        active = nodes.add("Mul", [active, inner[1]], f"{block}/gated")
    return linear(building, f"{path}.{shape.names.narrowing}", active)


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
