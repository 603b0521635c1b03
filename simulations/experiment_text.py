"""What every proposed experiment has in it, as lines of TOML."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from protocol.rows.formats import shown
from simulations.columns import LEAST

HOLDOUT = 0.2
USUAL, ROWS_EACH, ASKED = 20, 20, 10  # devices; rows of one; devices asked per round


def first_lines(
    path: Path, test: Path | None, out: Path, *, rows: int, base: list[str]
) -> list[str]:
    """Name, base and data of an experiment over ``rows`` rows of ``path`` that lies at ``out``."""
    return [
        f"# An experiment over {path.name}: proposed from its {rows} rows. Correct what is wrong.",
        "format = 1",
        f"name = {toml(plain_name(path))}",
        "",
        "[base]",
        *base,
        "",
        "[data]",
        f"train = {toml(relative(path, out))}",
        *([f"test = {toml(relative(test, out))}"] if test else []),
        *([] if test else [f"holdout = {HOLDOUT}  # of the rows, to test on"]),
    ]


def population_lines(
    clients: int, column: str, others: dict[str, int], *, otherwise: list[str]
) -> list[str]:
    """A device per value of ``column``; without one what ``otherwise`` says."""
    named = ", ".join(f"{shown(name)} ({count})" for name, count in others.items())
    by_column = ['partition = "column"  # a device per value', f"column = {toml(column)}"]
    return [
        "",
        "[population]",
        f"clients = {clients}",
        *(by_column if column else otherwise),
        *([f"# other columns with several values: {named}"] if named else []),
    ]


def cohort_lines(clients: int) -> list[str]:
    """Who is asked in a round."""
    size = min(ASKED, clients)
    quorum = max(LEAST, 2 * size // 3 + 1)
    return ["", "[plan.cohort]", f"size = {size}", f"quorum = {quorum}"]


def usual_clients(rows: int) -> int:
    """How many devices rows without owners are dealt out to."""
    return max(LEAST, min(USUAL, rows // ROWS_EACH))


def plain_name(path: Path) -> str:
    """Of a file, as a plan may have it."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:64]
    return plain or "experiment"


def relative(path: Path, out: Path) -> str:
    """From the folder of ``out``."""
    return os.path.relpath(path.resolve(), out.resolve().parent)


def toml(value: object) -> str:
    """A value."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
