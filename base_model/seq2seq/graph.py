"""The graphs of a base that turns a text into another: one reads, one writes; and both as one, for training.

The encoder also computes the keys and values that the decoder's layers take of what was read: once for a
text, under one adapter. Each linear is in one graph only, and so are its slots. The decoder keeps the
contract of one that writes text (``protocol.decoder_manifest``), with what was read as further inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto

from base_model.decoder.attention import cached_positions
from base_model.decoder.graph import counts, last_rows
from base_model.decoder.nodes import Dimensions, Nodes
from base_model.decoder.norms import layer_norm
from base_model.decoder.parts import activated, added_norm, word_rows
from base_model.decoder.products import FLOATS, Stores, linear, linears, product, rows_of, scaled
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
    named,
    placed_words,
    places_of,
    positions_of,
    source_attention,
    target_attention,
)
from base_model.seq2seq.shape import (
    DECODER,
    ENCODER,
    Block,
    Seq2SeqShape,
)
from protocol.decoder_manifest import IDS, LOGITS, MASK
from protocol.seq2seq_manifest import SOURCE_MASK, STATES, cross_names

HIDDEN = "hidden/last"  # (tokens, hidden): what the output layer multiplies


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Hidden states (tokens, hidden), and what the last block adds to them; "" before the first."""

    states: str
    added: str = ""


def encoder_graph(
    shape: Seq2SeqShape, weights: Stores, *, slots: bool, level: int = FLOATS
) -> Nodes:
    """Ids and mask (rows, source) to states, and to keys and values for each layer of the decoder."""
    building = _building(shape, weights, Nodes("encoder"), slots=slots, level=level)
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


def decoder_graph(
    shape: Seq2SeqShape, weights: Stores, *, slots: bool, level: int = FLOATS
) -> Nodes:
    """New tokens, the cache of those before and what was read, to logits and the grown cache."""
    building = _building(shape, weights, Nodes("decoder"), slots=slots, level=level)
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
    logits = product(building, shape.head, last_rows(nodes, rows), "logits/rows")
    nodes.add("Unsqueeze", [logits, nodes.numbers("one", [1])], LOGITS)
    nodes.output(LOGITS, TensorProto.FLOAT, ["rows", 1, shape.vocabulary])
    for part in parts:
        nodes.output(f"present.{part}", TensorProto.FLOAT, _heads(shape, "total"))
    return nodes


def whole_graph(shape: Seq2SeqShape, weights: Stores, *, slots: bool = True) -> Building:
    """Ids and mask (rows, source) and :data:`TARGET` to hidden states: teacher forcing, no cache.

    The decoder reads what it is to write, shifted by one: ``start`` comes first, ``padding`` where a target
    counts for nothing. :data:`TARGET` is no input yet: whoever takes the graph adds it.
    """
    building = _building(shape, weights, Nodes("whole"), slots=slots, derivable=True)
    nodes = building.nodes
    for name in (IDS, MASK):
        nodes.input(name, TensorProto.INT64, ["rows", "source"])
    states = encoded(building)
    memory = [cross_heads(building, layer, states) for layer in range(shape.layers)]
    nodes.add("Shape", [TARGET], WRITTEN)
    rows = decoded(building, _shifted(building), target_attention, memory, MASK)
    _name_rows(building)
    nodes.add("Identity", [rows], HIDDEN)
    nodes.output(HIDDEN, TensorProto.FLOAT, [positions_of(WRITTEN), shape.hidden])
    return building


def encoded(building: Building) -> str:
    """States of what is read, (tokens, hidden)."""
    building.nodes.add("Shape", [IDS], SOURCE)
    stream = _words(building, ENCODER, IDS, SOURCE)
    for layer in range(building.shape.encoder_layers):
        attention, dense = building.shape.blocks(ENCODER, layer)
        stream = _attention(building, layer, attention, stream, source_attention)
        stream = _feed_forward(building, dense, stream)
    return _last(building, ENCODER, stream)


def cross_heads(building: Building, layer: int, states: str) -> Heads:
    """Keys and values (rows, heads, source, head_size) that a layer of the decoder takes of what was read."""
    _, *pair, _ = building.shape.blocks(DECODER, layer)[1].linears
    path = building.shape.blocks(DECODER, layer)[1].path
    rows = linears(building, f"{path}.kv", list(pair), states)
    keys, values = (heads_of(building, part, SOURCE) for part in rows)
    return keys, values


def decoded(
    building: Building, ids: str, attention: Attention, memory: list[Heads], mask: str
) -> str:
    """What the output layer multiplies, (tokens, hidden), for what was written before each token."""
    stream = _words(building, DECODER, ids, WRITTEN)
    for layer in range(building.shape.layers):
        own, cross, dense = building.shape.blocks(DECODER, layer)
        stream = _attention(building, layer, own, stream, attention)
        rows, total = _entered(building, cross, stream)
        first, *_, last = cross.linears
        queries = linear(building, first, rows)
        output = cross_attention(building, cross.path, queries, memory[layer], mask)
        stream = _left(building, cross, total, linear(building, last, output))
        stream = _feed_forward(building, dense, stream)
    rows = _last(building, DECODER, stream)
    return scaled(building.nodes, rows, building.shape.logits_scale, "hidden/scaled")


def _building(
    shape: Seq2SeqShape,
    weights: Stores,
    nodes: Nodes,
    *,
    slots: bool,
    derivable: bool = False,
    level: int = FLOATS,
) -> Building:
    return Building(
        shape=shape,
        sizes=shape.matrices(),
        weights=weights,
        nodes=nodes,
        slots=slots,
        derivable=derivable,
        level=level,
    )


def _heads(shape: Seq2SeqShape, tokens: str) -> Dimensions:
    return ["rows", shape.heads, tokens, shape.head_size]


def _words(building: Building, stack: str, ids: str, texts: str) -> Stream:
    """What a stack reads, of ids whose sizes are ``texts``."""
    shape = building.shape
    rows = word_rows(building, shape.embeddings, ids, prefix=f"{stack}/")
    rows = scaled(building.nodes, rows, shape.embedding_scale, f"{stack}/words/scaled")
    if shape.table:
        cached = stack == DECODER and ids == IDS
        own = f"{texts}/places"
        places = cached_positions(building) if cached else building.once(own, places_of)
        rows = placed_words(building, stack, rows, texts, places)
        rows = layer_norm(building, rows, shape.stack_norm(stack), epsilon=shape.epsilon)
    return Stream(states=named(building, rows, [positions_of(texts), shape.hidden]))


def _name_rows(building: Building) -> None:
    """How many rows linears give: an adapter's tensors, and so what they give, are of free sizes."""
    for stack, texts in ((ENCODER, SOURCE), (DECODER, WRITTEN)):
        for layer in range(building.shape.depth(stack)):
            for block in building.shape.blocks(stack, layer):
                of_source = block.linears[1:3] if block.kind == "cross" else ()
                for path in block.linears:
                    rows = positions_of(SOURCE if path in of_source else texts)
                    named(building, rows_of(path), [rows, building.sizes[path][0]])


def _entered(building: Building, block: Block, stream: Stream) -> tuple[str, str]:
    """(what a block reads, the stream)."""
    if building.shape.style == "bart":
        return stream.states, stream.states
    epsilon = building.shape.epsilon
    return added_norm(building, stream.states, stream.added, block.norm, epsilon=epsilon)


def _left(building: Building, block: Block, total: str, added: str) -> Stream:
    """The stream behind a block."""
    if building.shape.style == "t5":
        return Stream(states=total, added=added)
    states = building.nodes.add("Add", [total, added], f"{block.norm}/stream")
    epsilon = building.shape.epsilon
    return Stream(states=layer_norm(building, states, block.norm, epsilon=epsilon))


def _last(building: Building, stack: str, stream: Stream) -> str:
    """What a stack gives."""
    if building.shape.style == "bart":
        return stream.states
    path, epsilon = building.shape.stack_norm(stack), building.shape.epsilon
    return added_norm(building, stream.states, stream.added, path, epsilon=epsilon)[0]


def _attention(
    building: Building, layer: int, block: Block, stream: Stream, attention: Attention
) -> Stream:
    rows, total = _entered(building, block, stream)
    *first, last = block.linears
    queries, keys, values = linears(building, f"{block.path}.qkv", first, rows)
    output = attention(building, block, layer, queries, keys, values)
    return _left(building, block, total, linear(building, last, output))


def _feed_forward(building: Building, block: Block, stream: Stream) -> Stream:
    nodes, shape = building.nodes, building.shape
    rows, total = _entered(building, block, stream)
    *paths, last = block.linears
    first, *gate = (
        linears(building, f"{block.path}.wi", paths, rows)
        if shape.gated
        else [linear(building, paths[0], rows)]
    )
    active = activated(building, shape.activation, first, block.path)
    for other in gate:
        active = nodes.add("Mul", [active, other], f"{block.path}/gated")
    return _left(building, block, total, linear(building, last, active))


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
