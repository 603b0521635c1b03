"""``clients.json``: which simulated client holds what, for people and for the report."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from protocol.rows.read import Table
from simulations.grid import client_name
from simulations.partitions import Partition
from simulations.plots import table

Json = dict[str, Any]


def list_clients(rows: Table, parts: Partition, column: str) -> Json:
    """By client: the value of ``column`` that made it (none without a column), its rows and labels."""
    return {
        "column": column or None,
        "clients": {
            client_name(number): {
                "value": rows.groups[part[0]] if column else None,
                "rows": len(part),
                "labels": len({rows.labels[row] for row in part}),
            }
            for number, part in enumerate(parts)
        },
    }


def who_is_who(listed: Json | None) -> str:
    """The report's table of clients."""
    if not listed:
        return "<p>Not recorded: no simulation made these clients.</p>"
    column = listed["column"]
    head = ["client", *([column] if column else []), "rows", "labels"]
    rows: list[list[object]] = [
        [name, *([one["value"]] if column else []), one["rows"], one["labels"]]
        for name, one in listed["clients"].items()
    ]
    said = f"<p>One device per value of <code>{escape(column)}</code>.</p>" if column else ""
    return said + f"<details><summary>{len(rows)} clients</summary>{table(head, rows)}</details>"


def named(client: str, listed: Mapping[str, Any] | None) -> str:
    """A client with the value that it stands for, where there is one."""
    value = ((listed or {}).get("clients", {}).get(client) or {}).get("value")
    return client if value is None else f"{client} ({value})"
