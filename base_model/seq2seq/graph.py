"""The graphs of a base that turns a text into another: one reads, one writes; and both as one, for training.

The encoder also computes the keys and values that the decoder's layers take of what was read: once for a
text, under one adapter. Each linear is in one graph only, and so are its slots. The decoder keeps the
contract of one that writes text (``protocol.decoder_manifest``), with what was read as further inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto

from base_model.decoder.graph import counts
from base_model.decoder.nodes import Dimensions, Nodes
from base_model.decoder.parts import activated, added_norm, word_rows
from base_model.decoder.products import Stores, linear, output_rows, scaled
from base_model.programs.token_loss import TARGET
from base_model.seq2seq.attention import (
    SOURCE,
    WRITTEN,
    Attention,
    Building,
    Heads,
    cached_attention,
    cross_attention,
    heads_of,
    source_attention,
    target_attention,
)
from base_model.seq2seq.shape import (
    DECODER,
    ENCODER,
    LAST_NORM,
    SHARED,
    Seq2SeqShape,
    blocks,
)
from protocol.decoder_manifest import IDS, LOGITS, MASK
from protocol.seq2seq_manifest import SOURCE_MASK, STATES, cross_names

HIDDEN = "hidden/last"  # (tokens, hidden): what the output layer multiplies


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Hidden states (tokens, hidden), and what the last block adds to them; "" before the first."""

    states: str
    added: str = ""


def encoder_graph(shape: Seq2SeqShape, weights: Stores, *, slots: bool) -> Nodes:
    """Ids and mask (rows, source) to states, and to keys and values for each layer of the decoder."""
    building = _building(shape, weights, Nodes("encoder"), slots=slots)
    nodes = building.nodes
    for name in (IDS, MASK):
        nodes.input(name, TensorProto.INT64, ["rows", "source"])
    states = encoded(building)
    sizes = building.once(f"{SOURCE}/states", _state_shape)
    nodes.add("Reshape", [states, sizes], STATES)
    nodes.output(STATES, TensorProto.FLOAT, ["rows", "source", shape.hidden])
    for layer in range(shape.layers):
        pair = cross_heads(building, layer, states)
        for heads, name in zip(pair, cross_names(layer), strict=True):
            nodes.add("Identity", [heads], name)
            nodes.output(name, TensorProto.FLOAT, _heads(shape, "source"))
    return nodes


def decoder_graph(shape: Seq2SeqShape, weights: Stores, *, slots: bool) -> Nodes:
    """New tokens, the cache of those before and what was read, to logits and the grown cache."""
    building = _building(shape, weights, Nodes("decoder"), slots=slots)
    nodes = building.nodes
    nodes.input(IDS, TensorProto.INT64, ["rows", "new"])
    nodes.input(MASK, TensorProto.INT64, ["rows", "total"])
    nodes.input(SOURCE_MASK, TensorProto.INT64, ["rows", "source"])
    layers = range(shape.layers)
    parts = [f"{layer}.{part}" for layer in layers for part in ("key", "value")]
    for name in (name for layer in layers for name in cross_names(layer)):
        nodes.input(name, TensorProto.FLOAT, _heads(shape, "source"))
    for part in parts:
        nodes.input(f"past_key_values.{part}", TensorProto.FLOAT, _heads(shape, "past"))
    counts(nodes)
    memory = [cross_names(layer) for layer in layers]
    rows = decoded(building, IDS, cached_attention, memory, SOURCE_MASK)
    logits = output_rows(building, shape.head, rows, "logits/rows")
    nodes.add("Reshape", [logits, "tokens/any"], LOGITS)
    nodes.output(LOGITS, TensorProto.FLOAT, ["rows", "new", shape.vocabulary])
    for part in parts:
        nodes.output(f"present.{part}", TensorProto.FLOAT, _heads(shape, "total"))
    return nodes


def whole_graph(shape: Seq2SeqShape, weights: Stores, *, slots: bool = True) -> Building:
    """Ids and mask (rows, source) and :data:`TARGET` to hidden states: teacher forcing, no cache.

    The decoder reads what it is to write, shifted by one: ``start`` comes first, ``padding`` where a target
    counts for nothing. :data:`TARGET` is no input yet: whoever takes the graph adds it.
    """
    building = _building(shape, weights, Nodes("whole"), slots=slots, fused_norms=False)
    nodes = building.nodes
    for name in (IDS, MASK):
        nodes.input(name, TensorProto.INT64, ["rows", "source"])
    states = encoded(building)
    memory = [cross_heads(building, layer, states) for layer in range(shape.layers)]
    nodes.add("Shape", [TARGET], WRITTEN)
    rows = decoded(building, _shifted(building), target_attention, memory, MASK)
    nodes.add("Identity", [rows], HIDDEN)
    nodes.output(HIDDEN, TensorProto.FLOAT, ["positions", shape.hidden])
    return building


def encoded(building: Building) -> str:
    """States of what is read, (tokens, hidden)."""
    building.nodes.add("Shape", [IDS], SOURCE)
    stream = Stream(states=word_rows(building, SHARED, IDS))
    for layer in range(building.shape.encoder_layers):
        attention, dense = blocks(ENCODER, layer)
        stream = _attention(building, layer, attention, stream, source_attention)
        stream = _feed_forward(building, dense, stream)
    return _normed(building, f"{ENCODER}.{LAST_NORM}", stream)[0]


def cross_heads(building: Building, layer: int, states: str) -> Heads:
    """Keys and values (rows, heads, source, head_size) that a layer of the decoder takes of what was read."""
    path = blocks(DECODER, layer)[1]
    keys, values = (
        heads_of(building, linear(building, f"{path}.{name}", states), SOURCE) for name in "kv"
    )
    return keys, values


def decoded(
    building: Building, ids: str, attention: Attention, memory: list[Heads], mask: str
) -> str:
    """What the output layer multiplies, (tokens, hidden), for what was written before each token."""
    stream = Stream(states=word_rows(building, SHARED, ids, prefix=f"{DECODER}/"))
    for layer in range(building.shape.layers):
        own, cross, dense = blocks(DECODER, layer)
        stream = _attention(building, layer, own, stream, attention)
        rows, total = _normed(building, _norm_of(cross), stream)
        queries = linear(building, f"{cross}.q", rows)
        output = cross_attention(building, cross, queries, memory[layer], mask)
        stream = Stream(states=total, added=linear(building, f"{cross}.o", output))
        stream = _feed_forward(building, dense, stream)
    rows = _normed(building, f"{DECODER}.{LAST_NORM}", stream)[0]
    return scaled(building.nodes, rows, building.shape.logits_scale, "hidden/scaled")


def _building(
    shape: Seq2SeqShape, weights: Stores, nodes: Nodes, *, slots: bool, fused_norms: bool = True
) -> Building:
    return Building(
        shape=shape,
        sizes=shape.matrices(),
        weights=weights,
        nodes=nodes,
        slots=slots,
        fused_norms=fused_norms,
    )


def _heads(shape: Seq2SeqShape, tokens: str) -> Dimensions:
    return ["rows", shape.heads, tokens, shape.head_size]


def _normed(building: Building, path: str, stream: Stream) -> tuple[str, str]:
    """(the norm of the stream, the stream)."""
    epsilon = building.shape.epsilon
    return added_norm(building, stream.states, stream.added, path, epsilon=epsilon)


def _norm_of(block: str) -> str:
    return f"{block.rpartition('.')[0]}.layer_norm"


def _attention(
    building: Building, layer: int, path: str, stream: Stream, attention: Attention
) -> Stream:
    rows, total = _normed(building, _norm_of(path), stream)
    queries, keys, values = (linear(building, f"{path}.{name}", rows) for name in "qkv")
    output = attention(building, layer, queries, keys, values)
    return Stream(states=total, added=linear(building, f"{path}.o", output))


def _feed_forward(building: Building, path: str, stream: Stream) -> Stream:
    nodes, shape = building.nodes, building.shape
    rows, total = _normed(building, _norm_of(path), stream)
    first = linear(building, f"{path}.wi_0" if shape.gated else f"{path}.wi", rows)
    active = activated(nodes, shape.activation, first, path)
    if shape.gated:
        second = linear(building, f"{path}.wi_1", rows)
        active = nodes.add("Mul", [active, second], f"{path}/gated")
    return Stream(states=total, added=linear(building, f"{path}.wo", active))


def _state_shape(building: Building, output: str) -> None:
    """(rows, source, hidden) as a value."""
    nodes = building.nodes
    nodes.add("Concat", [SOURCE, nodes.numbers("last", [-1])], output, axis=0)


def _shifted(building: Building) -> str:
    """(rows, tokens): what the decoder reads for :data:`TARGET`."""
    nodes, shape = building.nodes, building.shape
    zero, one = nodes.numbers("zero/scalar", 0), nodes.numbers("one", [1])
    counted = nodes.add("GreaterOrEqual", [TARGET, zero], f"{TARGET}/counted")
    padding = nodes.numbers("padding", shape.padding)
    known = nodes.add("Where", [counted, TARGET, padding], f"{TARGET}/known")
    cut = [nodes.numbers("axis/0", [0]), nodes.numbers("last", [-1]), one]
    before = nodes.add("Slice", [known, *cut], f"{TARGET}/before")
    first = nodes.add("Slice", [known, nodes.numbers("axis/0", [0]), one, one], f"{TARGET}/first")
    nothing = nodes.add("Mul", [first, zero], f"{TARGET}/nothing")
    start = nodes.add("Add", [nothing, nodes.numbers("start", shape.start)], f"{TARGET}/start")
    return nodes.add("Concat", [start, before], f"{TARGET}/shifted", axis=1)
