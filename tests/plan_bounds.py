"""The bounds of a plan's keys, as its model has them and as the table of P-1.2 has them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protocol.plan import Plan

Bound = tuple[str, str, str]  # of what; least, most, as they are written
SIZES = {"value": ("minimum", "maximum"), "characters": ("minLength", "maxLength")}
SIZES["entries"] = ("minItems", "maxItems")


def model_bounds() -> dict[str, set[Bound]]:
    """By key: of its value, its characters, its entries; several where a table has several kinds.

    A hybrid's members have the keys of other methods, and their bounds.
    """
    schema = Plan.model_json_schema()
    bounds: dict[str, set[Bound]] = {}
    for key, node in _nodes(schema, schema["$defs"], ""):
        for what, (least, most) in SIZES.items():
            low, high = node.get(least), node.get(most)
            if node.get("exclusiveMinimum") == 0 and what == "value":
                low = 1  # of whole numbers
            if (above := node.get("exclusiveMaximum")) is not None and what == "value":
                high = f"below {written(above)}"
            if (low, high) != (None, None):
                of_method = key.replace("adapter.members[].", "adapter.")
                bounds.setdefault(of_method, set()).add((what, written(low), written(high)))
    return bounds


def _nodes(
    node: dict[str, Any], definitions: dict[str, Any], key: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    yield key, node
    if "$ref" in node:
        yield from _nodes(definitions[node["$ref"].rpartition("/")[2]], definitions, key)
    for name, inner in node.get("properties", {}).items():
        yield from _nodes(inner, definitions, f"{key}.{name}".removeprefix("."))
    for kind in ("anyOf", "oneOf", "allOf"):
        for inner in node.get(kind, []):
            yield from _nodes(inner, definitions, key)
    if "items" in node:
        yield from _nodes(node["items"], definitions, f"{key}[]")


def written(number: Any) -> str:
    """As the table writes it."""
    if number is None:
        return "none"
    if isinstance(number, str):
        return number
    power = re.fullmatch(r"(-?)1e([+-])(\d+)", f"{float(number):.0e}")
    if power and float(f"{float(number):.0e}") == number and not 1e-3 < abs(number) < 1e6:
        return f"{power[1]}10^{'-' * (power[2] == '-')}{int(power[3])}"
    if number % 1:
        return f"{number:,}"
    whole = int(number)
    return (
        f"2^{whole.bit_length() - 1}" if whole > 2**20 and whole.bit_count() == 1 else f"{whole:,}"
    )


def table_bounds(protocol: Path) -> dict[str, set[Bound]]:
    """The table behind P-1.2."""
    text = protocol.read_text("utf-8").partition("**P-1.2")[2].partition("**P-1.3")[0]
    bounds: dict[str, set[Bound]] = {}
    for line in re.findall(r"^ *\| (.*) \|$", text, re.M)[1:]:
        keys, what, least, most = line.split(" | ")
        for key in re.findall(r"`([^`]+)`", keys):
            bounds.setdefault(key, set()).add((what, least, most))
    return bounds
