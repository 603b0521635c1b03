"""The graph that reads whole texts at once, for training: no cache, attention in plain operators.

The same layers on the same tensors as the graph that generates (``base_model.decoder.graph``); what differs
are operators without a derivative: attention is written out, and a norm does not add. Texts lie at the left,
padding behind them, so no token sees any of it.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from onnx import TensorProto

from base_model.decoder.attention import rope_tables
from base_model.decoder.graph import embedded, layers
from base_model.decoder.nodes import Nodes
from base_model.decoder.parts import as_heads
from base_model.decoder.positions import with_positions
from base_model.decoder.products import Building, Stores, row_shape, rows_of
from base_model.decoder.prompt import before_texts, without_prompt
from base_model.decoder.shape import DecoderShape
from protocol.decoder_manifest import IDS, MASK
from protocol.forms import PREFIX

HIDDEN = "hidden/last"  # (tokens, hidden): behind the last norm, what the output layer multiplies
PREFIX_LENGTH = f"{PREFIX}/length"
POSITIONS, STACKED = "positions", "stacked"  # rows x tokens; query heads of a key head x tokens
# Sizes of a text: of its own tokens, with a prompt before them, and with a prefix that they see.
TOKENS, READ, SEEN = "tokens", "tokens/read", "tokens/seen"
NEVER = -1e9  # added to the score of a token that must not be seen


def sequence_graph(
    shape: DecoderShape,
    weights: Stores,
    *,
    slots: bool = True,
    prompt: bool = False,
    prefix: bool = False,
) -> Building:
    """Ids (rows, tokens) to hidden states. The mask is an input that nothing reads.

    ``slots``: of linears. ``prompt``: with a slot of a soft prompt; ``prefix``: with that of a prefix.
    """
    nodes = Nodes("sequence")
    building = Building(
        shape=shape,
        sizes=shape.matrices(),
        weights=weights,
        nodes=nodes,
        slots=slots,
        derivable=True,
    )
    nodes.input(IDS, TensorProto.INT64, ["rows", "tokens"])
    nodes.input(MASK, TensorProto.INT64, ["rows", "tokens"])
    if prompt:
        hidden = before_texts(building, embedded(building))
    else:
        nodes.add("Shape", [IDS], "tokens")
        hidden = embedded(building)
    nodes.add("Gather", ["tokens", nodes.numbers("one/scalar", 1)], "tokens/count", axis=0)
    if prefix:
        _take_prefix(building)
    hidden = with_positions(building, hidden, partial(whole_positions, prefix))
    hidden = nodes.shape(hidden, [POSITIONS, shape.hidden])
    read = READ if prompt else TOKENS
    attention = partial(whole_attention, prefix=prefix, read=read, visible=SEEN if prefix else read)
    hidden = layers(building, hidden, attention)
    for linear in shape.linears():  # an adapter's tensors, and so what they give, are of free sizes
        nodes.shape(rows_of(linear.path), [POSITIONS, linear.out_features])
    if prompt:
        hidden = without_prompt(building, hidden)
    if shape.logits_scale != 1:
        by = nodes.number("logits/by", shape.logits_scale)
        hidden = nodes.add("Mul", [hidden, by], "hidden/scaled")
    nodes.add("Identity", [hidden], HIDDEN)
    rows = f"{POSITIONS}/own" if prompt else POSITIONS
    nodes.output(HIDDEN, TensorProto.FLOAT, [rows, shape.hidden])
    return building


def whole_positions(prefix: bool, building: Building) -> str:
    """Positions of every text's tokens, (tokens,), behind a prefix."""
    nodes = building.nodes
    first, end = nodes.numbers("zero/scalar", 0), "tokens/count"
    if prefix:
        first = f"{PREFIX_LENGTH}/scalar"
        end = nodes.add("Add", [first, end], "positions/end")
    return nodes.add("Range", [first, end, nodes.numbers("one/scalar", 1)], "positions")


def whole_attention(
    building: Building,
    layer: int,
    queries: str,
    keys: str,
    values: str,
    *,
    prefix: bool = False,
    read: str = TOKENS,
    visible: str = TOKENS,
) -> str:
    """Each token sees itself and those before it, a prefix first: rows in, rows out.

    ``read`` and ``visible`` name the sizes of what is read of a text, and of what its last token sees.

    Query heads that share a key head are stacked along the tokens, so both products are of matrices.
    """
    nodes, shape = building.nodes, building.shape
    path = f"{shape.layer_path(layer)}.self_attn"
    of_keys = [0, shape.kv_heads, -1, shape.head_size]
    size = shape.head_size
    start = PREFIX_LENGTH if prefix else nodes.numbers("start/position", [0])
    query = _turned(building, layer, as_heads(building, queries, shape.heads, size), start)
    query = nodes.add("Reshape", [query, nodes.numbers("group", of_keys)], f"{path}/query")
    nodes.shape(query, ["rows", shape.kv_heads, STACKED, shape.head_size])
    key = _turned(building, layer, as_heads(building, keys, shape.kv_heads, size), start)
    key = _with_prefix(building, 2 * layer, key) if prefix else key
    value = as_heads(building, values, shape.kv_heads, size)
    value = _with_prefix(building, 2 * layer + 1, value) if prefix else value
    scores = nodes.shape(f"{path}/scores", ["rows", shape.kv_heads, STACKED, visible])
    nodes.add_contrib("FusedMatMul", [query, key], [scores], transB=1, alpha=shape.attention_scale)
    if shape.scores_cap:
        cap = nodes.number("attention/cap", shape.scores_cap)
        scores = nodes.add("Div", [scores, cap], f"{path}/shrunk")
        scores = nodes.add("Tanh", [scores], f"{path}/bent")
        scores = nodes.add("Mul", [scores, cap], f"{path}/capped")
    window = shape.windows[layer]
    unseen = building.once(f"unseen/{window}", partial(_unseen, window, prefix, visible))
    seen = nodes.add("Add", [scores, unseen], f"{path}/seen")
    nodes.shape(seen, ["rows", shape.kv_heads, STACKED, visible])
    shares = nodes.add("Softmax", [seen], f"{path}/shares", axis=-1)
    mixed = nodes.add("MatMul", [shares, value], f"{path}/mixed")
    heads = nodes.numbers("ungroup", [0, shape.heads, -1, shape.head_size])
    mixed = nodes.add("Reshape", [mixed, heads], f"{path}/heads")
    nodes.shape(mixed, ["rows", shape.heads, read, shape.head_size])
    mixed = nodes.add("Transpose", [mixed], f"{path}/texts", perm=[0, 2, 1, 3])
    rows = nodes.add("Reshape", [mixed, row_shape(nodes, shape.query_size)], f"{path}/attended")
    return nodes.shape(rows, [POSITIONS, shape.query_size])


def _take_prefix(building: Building) -> None:
    """Its slot, in parts (2 * layers, kv_heads, tokens, size); its length, (1,) and as a scalar."""
    nodes, shape = building.nodes, building.shape
    width = shape.layers * 2 * shape.key_size
    slot = nodes.slot(PREFIX, [PREFIX, width], np.zeros((0, width), np.float32))
    length = nodes.add("Shape", [slot], PREFIX_LENGTH, start=0, end=1)
    nodes.add("Squeeze", [length], f"{PREFIX_LENGTH}/scalar")
    sizes = nodes.numbers("sizes", [-1, shape.layers * 2, shape.kv_heads, shape.head_size])
    heads = nodes.add("Reshape", [slot, sizes], f"{PREFIX}/heads")
    nodes.add("Transpose", [heads], f"{PREFIX}/parts", perm=[1, 2, 0, 3])
    rows = nodes.add("Shape", [IDS], f"{PREFIX}/rows", start=0, end=1)
    ones = nodes.numbers("one/one/one", [1, 1, 1])
    nodes.add("Concat", [rows, ones], f"{PREFIX}/texts", axis=0)


def _with_prefix(building: Building, number: int, heads: str) -> str:
    """Keys or values (rows, kv_heads, tokens, size) behind a part of the prefix, which no position turns."""
    nodes, name = building.nodes, f"{PREFIX}/{number}"
    place = nodes.numbers(f"place/{number}", number)
    part = nodes.add("Gather", [f"{PREFIX}/parts", place], name, axis=0)
    spread = nodes.add("Expand", [part, f"{PREFIX}/texts"], f"{name}/texts")
    return nodes.add("Concat", [spread, heads], f"{heads}/begun", axis=2)


def _turned(building: Building, layer: int, heads: str, start: str) -> str:
    """Queries or keys by their positions, which begin at ``start``."""
    nodes, shape = building.nodes, building.shape
    rope = shape.ropes[layer]
    if rope is None:
        return heads
    width, size, turning = rope.width(shape.head_size), shape.head_size, heads
    if width < size:
        turning = f"{heads}/turning"
        nodes.split(heads, [turning, f"{heads}/still"], (width, size - width))
    inputs = [turning, start, *rope_tables(building, rope)]
    nodes.add_contrib("RotaryEmbedding", inputs, [f"{turning}/turned"])
    if width == size:
        return f"{turning}/turned"
    parts = [f"{turning}/turned", f"{heads}/still"]
    return nodes.add("Concat", parts, f"{heads}/turned", axis=-1)


def _unseen(window: int, prefix: bool, visible: str, building: Building, output: str) -> None:
    """(group * tokens, prefix + tokens): 0 where a token sees another, else hugely negative."""
    nodes, shape = building.nodes, building.shape
    zero, one = nodes.numbers("zero/scalar", 0), nodes.numbers("one/scalar", 1)
    first, end = zero, "tokens/count"
    if prefix:
        first = f"{PREFIX_LENGTH}/scalar"
        end = nodes.add("Add", [first, end], f"{output}/end")
    places = nodes.add("Range", [zero, end, one], f"{output}/places")
    later = nodes.add("Range", [first, end, one], f"{output}/own") if prefix else places
    later = nodes.add("Unsqueeze", [later, nodes.numbers("axis/1", [1])], f"{output}/later")
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
    nodes.shape(output, [STACKED, visible])
