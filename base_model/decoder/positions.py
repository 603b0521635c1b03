"""Positions that are learned: a table, whose row each token has added to its word's."""

from __future__ import annotations

from collections.abc import Callable

from base_model.decoder.products import Building, row_shape
from base_model.decoder.source import CodedWeight

Positions = Callable[[Building], str]  # (graph) to the tokens' positions, (rows, new) or (new,)


def with_positions(building: Building, words: str, positions: Positions) -> str:
    """Rows of words (tokens, hidden) plus those of the table, if the decoder has one."""
    shape, nodes = building.shape, building.nodes
    if not shape.positions:
        return words
    path = shape.names.positions
    table = building.weights[f"{path}.weight"]
    assert not isinstance(table, CodedWeight)
    places = positions(building)
    taken = nodes.add(
        "Gather", [nodes.tensor(f"{path}.weight", table), places], f"{path}/taken", axis=0
    )
    deep = building.once("tokens/deep", _as_texts)
    texts = nodes.add("Reshape", [words, deep], f"{path}/texts")
    sums = nodes.add("Add", [texts, taken], f"{path}/sums")
    return nodes.add("Reshape", [sums, row_shape(nodes, shape.hidden)], f"{path}/rows")


def _as_texts(building: Building, output: str) -> None:
    """(rows, new, hidden) as a value."""
    nodes = building.nodes
    width = nodes.numbers(f"width/{building.shape.hidden}", [building.shape.hidden])
    nodes.add("Concat", ["tokens", width], output, axis=0)
