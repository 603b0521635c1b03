"""The graph that reads whole texts at once, for training: no cache, attention in plain operators.

The same layers on the same tensors as the graph that generates (``base_model.decoder.graph``); what differs
are operators without a derivative: attention is written out, and a norm does not add. Texts lie at the left,
padding behind them, so no token sees any of it.
"""

from __future__ import annotations

from functools import partial

from onnx import TensorProto

from base_model.decoder.attention import rope_tables
from base_model.decoder.graph import embedded, layers
from base_model.decoder.nodes import Nodes
from base_model.decoder.parts import as_heads
from base_model.decoder.products import Building, Stores, row_shape
from base_model.decoder.shape import DecoderShape, layer_path
from protocol.decoder_manifest import IDS, MASK

HIDDEN = "hidden/last"  # (tokens, hidden): behind the last norm, what the output layer multiplies
NEVER = -1e9  # added to the score of a token that must not be seen


def sequence_graph(shape: DecoderShape, weights: Stores, *, slots: bool = True) -> Building:
    """Ids (rows, tokens) to hidden states. The mask is an input that nothing reads."""
    nodes = Nodes("sequence")
    building = Building(
        shape=shape,
        sizes=shape.matrices(),
        weights=weights,
        nodes=nodes,
        slots=slots,
        fused_norms=False,
    )
    nodes.input(IDS, TensorProto.INT64, ["rows", "tokens"])
    nodes.input(MASK, TensorProto.INT64, ["rows", "tokens"])
    sizes = nodes.add("Shape", [IDS], "tokens")
    nodes.add("Gather", [sizes, nodes.numbers("one/scalar", 1)], "tokens/count", axis=0)
    hidden = layers(building, embedded(building), whole_attention)
    if shape.logits_scale != 1:
        by = nodes.number("logits/by", shape.logits_scale)
        hidden = nodes.add("Mul", [hidden, by], "hidden/scaled")
    nodes.add("Identity", [hidden], HIDDEN)
    nodes.output(HIDDEN, TensorProto.FLOAT, ["positions", shape.hidden])
    return building


def whole_attention(building: Building, layer: int, queries: str, keys: str, values: str) -> str:
    """Each token sees itself and those before it: rows in, rows out.

    Query heads that share a key head are stacked along the tokens, so both products are of matrices.
    """
    nodes, shape, path = building.nodes, building.shape, f"{layer_path(layer)}.self_attn"
    of_keys = [0, shape.kv_heads, -1, shape.head_size]
    query = _turned(building, layer, as_heads(building, queries, shape.heads, shape.head_size))
    query = nodes.add("Reshape", [query, nodes.numbers("group", of_keys)], f"{path}/query")
    key = _turned(building, layer, as_heads(building, keys, shape.kv_heads, shape.head_size))
    key = nodes.add("Transpose", [key], f"{path}/key", perm=[0, 1, 3, 2])
    value = as_heads(building, values, shape.kv_heads, shape.head_size)
    scores = nodes.add("MatMul", [query, key], f"{path}/scores")
    scale = nodes.number("attention/scale", shape.attention_scale)
    scores = nodes.add("Mul", [scores, scale], f"{path}/scaled")
    if shape.scores_cap:
        cap = nodes.number("attention/cap", shape.scores_cap)
        scores = nodes.add("Div", [scores, cap], f"{path}/shrunk")
        scores = nodes.add("Tanh", [scores], f"{path}/bent")
        scores = nodes.add("Mul", [scores, cap], f"{path}/capped")
    window = shape.windows[layer]
    unseen = building.once(f"unseen/{window}", partial(_unseen, window))
    seen = nodes.add("Add", [scores, unseen], f"{path}/seen")
    shares = nodes.add("Softmax", [seen], f"{path}/shares", axis=-1)
    mixed = nodes.add("MatMul", [shares, value], f"{path}/mixed")
    heads = nodes.numbers("ungroup", [0, shape.heads, -1, shape.head_size])
    mixed = nodes.add("Reshape", [mixed, heads], f"{path}/heads")
    mixed = nodes.add("Transpose", [mixed], f"{path}/texts", perm=[0, 2, 1, 3])
    return nodes.add("Reshape", [mixed, row_shape(nodes, shape.query_size)], f"{path}/attended")


def _turned(building: Building, layer: int, heads: str) -> str:
    """Queries or keys by their positions, which begin at 0."""
    nodes, shape = building.nodes, building.shape
    rope = shape.ropes[layer]
    if rope is None:
        return heads
    inputs = [heads, nodes.numbers("start/position", [0]), *rope_tables(building, rope)]
    nodes.add_contrib("RotaryEmbedding", inputs, [f"{heads}/turned"])
    return f"{heads}/turned"


def _unseen(window: int, building: Building, output: str) -> None:
    """(group * tokens, tokens): 0 where a token sees another, else hugely negative."""
    nodes, shape = building.nodes, building.shape
    zero, one = nodes.numbers("zero/scalar", 0), nodes.numbers("one/scalar", 1)
    places = nodes.add("Range", [zero, "tokens/count", one], f"{output}/places")
    later = nodes.add("Unsqueeze", [places, nodes.numbers("axis/1", [1])], f"{output}/later")
    apart = nodes.add("Sub", [later, places], f"{output}/apart")  # how far back a token lies
    sees = nodes.add("GreaterOrEqual", [apart, zero], f"{output}/before")
    if window:
        far = nodes.numbers(f"window/{window}", window)
        near = nodes.add("Less", [apart, far], f"{output}/near")
        sees = nodes.add("And", [sees, near], f"{output}/both")
    values = [nodes.number("seen", 0.0), nodes.number("never", NEVER)]
    bias = nodes.add("Where", [sees, *values], f"{output}/one")
    group = shape.heads // shape.kv_heads
    nodes.add("Tile", [bias, nodes.numbers(f"tile/{group}", [group, 1])], output)
