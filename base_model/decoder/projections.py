"""Queries, keys and values that are one matrix: its output in three."""

from __future__ import annotations

from base_model.decoder.products import Building, row_shape


def in_three(building: Building, path: str, rows: str) -> list[str]:
    """Rows (tokens, size) each of ``rows``: one behind the other, or head by head."""
    nodes, shape = building.nodes, building.shape
    names = [f"{path}.{name}" for name in ("queries", "keys", "values")]
    if not shape.by_head:
        nodes.split(rows, names, (shape.query_size, shape.key_size, shape.key_size))
        return names
    sizes = nodes.numbers("heads/three", [-1, shape.heads, 3 * shape.head_size])
    heads = nodes.add("Reshape", [rows, sizes], f"{path}/heads/three")
    nodes.split(heads, [f"{name}/apart" for name in names])
    whole = row_shape(nodes, shape.query_size)
    return [nodes.add("Reshape", [f"{name}/apart", whole], name) for name in names]
