"""``fedge deploy status`` for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def print_status(told: dict[str, Any]) -> None:
    """Print what :func:`server.delivery.status.gather` found."""
    console = Console(markup=False, emoji=False)
    table = Table(
        "release", "channel", "state", "rollout", "accuracy", "evidence", "runs on", "failed on"
    )
    for row in told["releases"]:
        accuracy = row.get("metrics", {}).get("accuracy")
        rollout = row.get("rollout_permille")
        table.add_row(
            row["release"],
            row["channel"],
            row["state"] + (f": {row['reason']}" if row["state"] == "revoked" else ""),
            "" if rollout is None else f"{rollout / 10:g} %",
            "" if accuracy is None else f"{accuracy / 1000:.3f}",
            row.get("evidence") or "",
            ", ".join(row["running"]),
            "; ".join(f"{device}: {why}" for device, why in sorted(row["failed"].items())),
        )
    console.print(table)
    for role, one in told["expires"].items():
        state = "EXPIRED" if one["expired"] else "expires"
        console.print(f"{role:<10} version {one['version']}, {state} {one['at'][:16]}")
    for name in told["unreadable_reports"]:
        console.print(f"{name}: not a device's report")
