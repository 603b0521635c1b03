"""Attention and positions: in plain operators of whole texts, or over a cache.

Whole texts have a derivative; a cache is ONNX Runtime's grouped attention, which takes what is added to
scores as an input. The bias is computed once for all layers of a stack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from base_model.decoder.attention import cached_positions
from base_model.decoder.nodes import Dimensions
from base_model.decoder.parts import as_heads
from base_model.decoder.products import Products, row_shape
from base_model.decoder.source import CodedWeight
from base_model.seq2seq.shape import DECODER, ENCODER, OFFSET, Block, Seq2SeqShape
from protocol.decoder_manifest import MASK

NEVER = -1e9  # added to the score of a token that must not be seen
SOURCE, WRITTEN = (
    "source",
    "tokens",
)  # names of the sizes (rows, tokens) of what is read and written
CROSS = "cross"


@dataclass(kw_only=True)
class Building(Products):
    """The graph of an encoder, of a decoder or of both on its way."""

    shape: Seq2SeqShape


# (graph, block, layer, queries, keys, values) to rows; each is rows of tokens.
Attention = Callable[[Building, Block, int, str, str, str], str]
Heads = tuple[str, str]  # keys and values, (rows, heads, tokens, size)


def named(building: Building, value: str, sizes: Dimensions) -> str:
    """``value``, in a graph with a derivative with the names of its sizes: what is alike is not summed."""
    return building.nodes.shape(value, sizes) if building.derivable else value


def positions_of(texts: str) -> str:
    """The name of how many rows all tokens of ``texts`` are."""
    return f"{texts}/positions"


def heads_of(building: Building, rows: str, texts: str) -> str:
    """(positions, heads * size) to (rows, heads, tokens, size)."""
    shape = building.shape
    heads = as_heads(building, rows, shape.heads, shape.head_size, texts=texts)
    return named(building, heads, ["rows", shape.heads, texts, shape.head_size])


def attended(
    building: Building, path: str, queries: str, keys: Heads, bias: str, texts: tuple[str, str]
) -> str:
    """Heads of queries to rows: what each token takes from those whose keys fit, ``bias`` added to scores.

    ``texts``: those of the queries and of the keys.
    """
    nodes, shape = building.nodes, building.shape
    scores = f"{path}/scores"
    pair = [queries, keys[0]]
    nodes.add_contrib("FusedMatMul", pair, [scores], transB=1, alpha=shape.attention_scale)
    named(building, scores, ["rows", shape.heads, *texts])
    seen = nodes.add("Add", [scores, bias], f"{path}/seen")
    shares = nodes.add("Softmax", [seen], f"{path}/shares", axis=-1)
    mixed = nodes.add("MatMul", [shares, keys[1]], f"{path}/mixed")
    mixed = nodes.add("Transpose", [mixed], f"{path}/texts", perm=[0, 2, 1, 3])
    rows = nodes.add("Reshape", [mixed, row_shape(nodes, shape.inner)], f"{path}/attended")
    return named(building, rows, [positions_of(texts[0]), shape.inner])


def source_attention(
    building: Building, block: Block, _layer: int, queries: str, keys: str, values: str
) -> str:
    """Each token of what is read sees all others: rows in, rows out."""
    query, *pair = (heads_of(building, rows, SOURCE) for rows in (queries, keys, values))
    if building.shape.table:
        bias = building.once(f"{CROSS}/bias/{MASK}", _unseen_padding)
    else:
        bias = building.once(f"{ENCODER}/bias", _source_bias)
    return attended(building, block.path, query, (pair[0], pair[1]), bias, (SOURCE, SOURCE))


def target_attention(
    building: Building, block: Block, _layer: int, queries: str, keys: str, values: str
) -> str:
    """Each token of what is written sees itself and those before it: rows in, rows out."""
    query, *pair = (heads_of(building, rows, WRITTEN) for rows in (queries, keys, values))
    bias = building.once(f"{DECODER}/bias", _target_bias)
    return attended(building, block.path, query, (pair[0], pair[1]), bias, (WRITTEN, WRITTEN))


def cached_attention(
    building: Building, block: Block, layer: int, queries: str, keys: str, values: str
) -> str:
    """The same over the cache and the new tokens, which it appends."""
    nodes, shape, path = building.nodes, building.shape, block.path
    texts = [
        nodes.add("Reshape", [name, "tokens/any"], f"{name}/texts")
        for name in (queries, keys, values)
    ]
    bias = [] if shape.table else ["", "", "", building.once(f"{DECODER}/bias", _cached_bias)]
    past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
    nodes.add_contrib(
        "GroupQueryAttention",
        [*texts, *past, "seqlens_k", "total_sequence_length", *bias],
        [f"{path}/texts", *(f"present.{layer}.{part}" for part in ("key", "value"))],
        num_heads=shape.heads,
        kv_num_heads=shape.heads,
        scale=shape.attention_scale,
        do_rotary=0,
    )
    return nodes.add(
        "Reshape", [f"{path}/texts", row_shape(nodes, shape.inner)], f"{path}/attended"
    )


def cross_attention(building: Building, path: str, queries: str, keys: Heads, mask: str) -> str:
    """Each token of what is written sees all of what was read, by its keys and values: rows in, rows out."""
    bias = building.once(f"{CROSS}/bias/{mask}", _unseen_padding)
    query = heads_of(building, queries, WRITTEN)
    return attended(building, path, query, keys, bias, (WRITTEN, SOURCE))


def placed_words(building: Building, stack: str, rows: str, texts: str, places: str) -> str:
    """Rows of words (tokens, hidden) plus those of a stack's table of positions at ``places``.

    ``texts`` holds the sizes (rows, tokens) that the words have; ``places`` are (tokens,) or (rows, tokens).
    """
    nodes, shape, path = building.nodes, building.shape, building.shape.positions(stack)
    table = building.weights[f"{path}.weight"]
    assert not isinstance(table, CodedWeight)
    behind = nodes.add("Add", [places, nodes.numbers("offset", OFFSET)], f"{path}/places")
    added = nodes.add(
        "Gather", [nodes.tensor(f"{path}.weight", table), behind], f"{path}/rows", axis=0
    )
    deep = nodes.add("Concat", [texts, nodes.numbers("last", [-1])], f"{path}/shape", axis=0)
    words = nodes.add("Reshape", [rows, deep], f"{path}/words")
    placed = nodes.add("Add", [words, added], f"{path}/placed")
    return nodes.add("Reshape", [placed, row_shape(nodes, shape.hidden)], f"{path}/added")


def _source_bias(building: Building, output: str) -> None:
    """(rows, heads, tokens, tokens): of positions, and hugely negative for padding."""
    nodes, shape = building.nodes, building.shape
    places = building.once(f"{SOURCE}/places", places_of)
    columns = nodes.add("Unsqueeze", [places, nodes.numbers("axis/1", [1])], f"{output}/from")
    apart = nodes.add("Sub", [places, columns], f"{output}/apart")
    ends = [nodes.numbers(f"{output}/{end}", end) for end in (-shape.distance, shape.distance)]
    near = nodes.add("Clip", [apart, *ends], f"{output}/near")
    row = nodes.add("Add", [near, ends[1]], f"{output}/row")
    added = _of_table(building, ENCODER, row, ahead=True)
    added = nodes.add("Transpose", [added], f"{output}/heads", perm=[2, 0, 1])
    padding = building.once(f"{CROSS}/bias/{MASK}", _unseen_padding)
    nodes.add("Add", [padding, added], output)


def _target_bias(building: Building, output: str) -> None:
    """(heads or none, tokens, tokens): of positions, and hugely negative for what comes later."""
    nodes = building.nodes
    places = building.once(f"{WRITTEN}/places", places_of)
    columns = nodes.add("Unsqueeze", [places, nodes.numbers("axis/1", [1])], f"{output}/from")
    apart = nodes.add("Sub", [columns, places], f"{output}/apart")
    if building.shape.table:
        added = nodes.number("seen", 0.0)
    else:
        added = _back(building, apart, output)
        added = nodes.add("Transpose", [added], f"{output}/heads", perm=[2, 0, 1])
    sees = nodes.add("GreaterOrEqual", [apart, nodes.numbers("zero/scalar", 0)], f"{output}/sees")
    nodes.add("Where", [sees, added, nodes.number("never", NEVER)], output)


def _cached_bias(building: Building, output: str) -> None:
    """(rows, heads, new, past + new): of positions; the operator sees to what comes later."""
    nodes = building.nodes
    zero, one = nodes.numbers("zero/scalar", 0), nodes.numbers("one/scalar", 1)
    columns = cached_positions(building)
    columns = nodes.add("Unsqueeze", [columns, nodes.numbers("two", [2])], f"{output}/from")
    places = nodes.add("Range", [zero, "mask/total", one], f"{output}/places")
    apart = nodes.add("Sub", [columns, places], f"{output}/apart")
    added = _back(building, apart, output)
    nodes.add("Transpose", [added], output, perm=[0, 3, 1, 2])


def _back(building: Building, apart: str, output: str) -> str:
    """(…, heads): of the decoder's table for distances back, those ahead counting as 0."""
    nodes = building.nodes
    ends = [nodes.numbers("zero/scalar", 0), nodes.numbers("far", building.shape.distance)]
    near = nodes.add("Clip", [apart, *ends], f"{output}/near")
    return _of_table(building, DECODER, near, ahead=False)


def _of_table(building: Building, stack: str, distances: str, *, ahead: bool) -> str:
    """(…, heads): the rows of a stack's table of positions for the buckets of distances."""
    nodes, path = building.nodes, building.shape.positions(stack)
    of_distance = nodes.tensor(f"{stack}/buckets", building.shape.distances(ahead=ahead))
    bucket = nodes.add("Gather", [of_distance, distances], f"{path}/bucket", axis=0)
    table = building.weights[f"{path}.weight"]
    assert not isinstance(table, CodedWeight)
    return nodes.add(
        "Gather", [nodes.tensor(f"{path}.weight", table), bucket], f"{path}/added", axis=0
    )


def places_of(building: Building, output: str) -> None:
    """(tokens,): 0 and so on, of a text's sizes."""
    nodes, texts = building.nodes, output.removesuffix("/places")
    zero, one = nodes.numbers("zero/scalar", 0), nodes.numbers("one/scalar", 1)
    count = nodes.add("Gather", [texts, one], f"{texts}/count", axis=0)
    nodes.add("Range", [zero, count, one], output)


def _unseen_padding(building: Building, output: str) -> None:
    """(rows, 1, 1, tokens): 0 where a mask is 1, else hugely negative."""
    nodes, mask = building.nodes, output.removeprefix(f"{CROSS}/bias/")
    seen = nodes.add("Greater", [mask, nodes.numbers("zero/scalar", 0)], f"{output}/seen")
    values = [nodes.number("seen", 0.0), nodes.number("never", NEVER)]
    flat = nodes.add("Where", [seen, *values], f"{output}/flat")
    nodes.add("Unsqueeze", [flat, nodes.numbers("axes/1/2", [1, 2])], output)
