"""``fedge deploy status`` for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from protocol.errors import printable


def print_status(told: dict[str, Any]) -> None:
    """Print what :func:`delivery.status.gather` found."""
    console = Console(markup=False, emoji=False)
    table = Table("release", "channel", "state", "quality", "runs on")
    table.columns[0].no_wrap = True
    for row in told["releases"]:
        metrics = row.get("metrics", {}).items()
        state = f"{row['rollout_permille'] / 10:g} %" if "rollout_permille" in row else row["state"]
        table.add_row(
            row["release"],
            row["channel"],
            state,
            ", ".join(f"{name} {value / 1000:.3f}" for name, value in metrics),
            ", ".join(row["running"]),
        )
    console.print(table)
    for row in told["releases"]:
        if row["state"] == "revoked":
            console.print(
                printable(f"{row['release']} was withdrawn from {row['channel']}: {row['reason']}")
            )
        for device, why in sorted(row["failed"].items()):
            console.print(
                printable(f"{row['release']} failed on {device} ({row['channel']}): {why}")
            )
    for role, one in told["expires"].items():
        state = "EXPIRED" if one["expired"] else "expires"
        console.print(f"{role:<10} version {one['version']}, {state} {one['at'][:16]}")
    for name in told["unreadable_reports"]:
        console.print(printable(f"{name}: not a device's report"))
