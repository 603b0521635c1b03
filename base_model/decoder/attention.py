"""Attention over a cache: a layer's only part that sees texts and positions.

It is one operator of ONNX Runtime, which turns queries and keys by their positions where heads are as it
likes them; elsewhere plain operators do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from base_model.decoder.products import Building, Products, row_shape
from base_model.decoder.shape import Rope

TURNS = 16  # the operator turns heads of a multiple of so many numbers only
# (graph, layer, queries, keys, values) to rows; each is rows of tokens.
Attention = Callable[[Building, int, str, str, str], str]


def cached_attention(building: Building, layer: int, queries: str, keys: str, values: str) -> str:
    """Attention over the cache and the new tokens, which it appends: rows in, rows out."""
    nodes, shape = building.nodes, building.shape
    path = f"{shape.layer_path(layer)}.self_attn"
    rope, window = shape.ropes[layer], shape.windows[layer]
    turns = rope is not None and rope.width(shape.head_size) % TURNS == 0
    if rope is not None and not turns:
        queries, keys = (turned(building, rope, name) for name in (queries, keys))
    texts = [
        nodes.add("Reshape", [name, "tokens/any"], f"{name}/texts")
        for name in (queries, keys, values)
    ]
    optional: dict[str, Any] = {"local_window_size": window} if window else {}
    if shape.scores_cap:
        optional["softcap"] = shape.scores_cap
    past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
    present = [f"present.{layer}.{part}" for part in ("key", "value")]
    tables = rope_tables(building, rope) if rope is not None and turns else ()
    nodes.add_contrib(
        "GroupQueryAttention",
        [*texts, *past, "seqlens_k", "total_sequence_length", *tables],
        [f"{path}/texts", *present],
        num_heads=shape.heads,
        kv_num_heads=shape.kv_heads,
        scale=shape.attention_scale,
        do_rotary=int(turns),
        rotary_interleaved=0,
        **optional,
    )
    rows = row_shape(nodes, shape.query_size)
    return nodes.add("Reshape", [f"{path}/texts", rows], f"{path}/attended")


def turned(building: Building, rope: Rope, rows: str) -> str:
    """Queries or keys, rows of tokens, turned by their positions in plain operators."""
    nodes, size = building.nodes, building.shape.head_size
    deep = building.once(f"tokens/heads/{size}", _head_shape)
    heads, width, still = nodes.add("Reshape", [rows, deep], f"{rows}/heads"), rope.width(size), ""
    if width < size:
        whole, heads, still = heads, f"{rows}/turning", f"{rows}/still"
        nodes.split(whole, [heads, still], (width, size - width))
    first, second = f"{rows}/first", f"{rows}/second"
    nodes.split(heads, [first, second])
    cosines, sines = (
        building.once(f"{table}/taken", _taken) for table in rope_tables(building, rope)
    )
    halves = []
    for kind, one, other in (("Sub", first, second), ("Add", second, first)):
        left = nodes.add("Mul", [one, cosines], f"{one}/cos")
        right = nodes.add("Mul", [other, sines], f"{other}/sin")
        halves.append(nodes.add(kind, [left, right], f"{one}/turned"))
    halves += [still] if still else []
    whole = nodes.add("Concat", halves, f"{rows}/turned/heads", axis=-1)
    return nodes.add("Reshape", [whole, "tokens/any"], f"{rows}/turned")


def rope_tables(building: Building, rope: Rope) -> tuple[str, str]:
    """Cosines and sines of a rope, (context, width / 2)."""
    number = list(dict.fromkeys(building.shape.ropes)).index(rope)
    cosines, sines = rope.tables(building.shape.head_size, building.shape.context)
    return (
        building.nodes.tensor(f"rope.{number}.cos", cosines),
        building.nodes.tensor(f"rope.{number}.sin", sines),
    )


def _head_shape(building: Building, output: str) -> None:
    """(rows, new, heads, head_size) of whatever has heads, as a value."""
    size = building.shape.head_size
    ends = building.nodes.numbers(f"{output}/ends", [-1, size])
    building.nodes.add("Concat", ["tokens", ends], output, axis=0)


def _taken(building: Building, output: str) -> None:
    """Rows of a table of positions for the new tokens, (rows, new, 1, width / 2)."""
    nodes = building.nodes
    places = cached_positions(building)
    rows = nodes.add("Gather", [output.removesuffix("/taken"), places], f"{output}/rows", axis=0)
    nodes.add("Unsqueeze", [rows, nodes.numbers("two", [2])], output)


def cached_positions(building: Products) -> str:
    """Positions of the new tokens, (rows, new)."""
    return building.once("positions", _positions)


def _positions(building: Products, output: str) -> None:
    """(rows, new): from the length of the cache on; a padded row of a first piece begins at 0."""
    nodes = building.nodes
    zero, one = nodes.numbers("zero/scalar", 0), nodes.numbers("one/scalar", 1)
    new = nodes.add("Gather", ["tokens", one], "tokens/new", axis=0)
    before = nodes.add("Sub", ["mask/sum", new], "positions/before")
    before = nodes.add("Max", [before, zero], "positions/start")
    column = nodes.add("Unsqueeze", [before, nodes.numbers("one", [1])], "positions/column")
    steps = nodes.add("Range", [zero, new, one], "positions/steps")
    nodes.add("Add", [column, steps], output)
