"""``clients.json``: which simulated client holds what, for people and for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from protocol.plan_sections import Cohort
from protocol.rows.read import Table
from simulations.partitions import Partition

Json = dict[str, Any]


def client_name(partition: int) -> str:
    """The name of the client that holds ``partition``; the same as ``client.app`` gives itself."""
    return f"client-{partition:04d}"


def taken(cohort: Cohort, clients: int) -> int:
    """How many of so many clients a plan takes. (P-4.1)"""
    return sum(cohort.takes(client_name(number)) for number in range(clients))


def list_clients(rows: Table, parts: Partition, column: str, *, labels: bool = True) -> Json:
    """By client: the value of ``column`` that made it (or None), its rows, and its ``labels`` with
    their rows where there are labels.
    """
    return {
        "column": column or None,
        "clients": {
            client_name(number): {
                "value": rows.groups[part[0]] if column else None,
                "rows": len(part),
            }
            | (_labels(rows.targets[row] for row in part) if labels else {})
            for number, part in enumerate(parts)
        },
    }


def _labels(targets: Iterable[str]) -> Json:
    rows = Counter(targets)
    return {"labels": len(rows), "label_rows": dict(sorted(rows.items()))}


def named(client: str, listed: Mapping[str, Any] | None) -> str:
    """A client with the value that it stands for, where there is one."""
    value = ((listed or {}).get("clients", {}).get(client) or {}).get("value")
    return client if value is None else f"{client} ({value})"
