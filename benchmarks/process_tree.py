"""A process with all that it has started and that still runs, as /proc has them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def cpu_of_tree(root: int) -> dict[int, float]:
    """CPU seconds so far, by process."""
    parents, ticks = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it has ended meanwhile
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
                ticks[int(entry.name)] = int(fields[11]) + int(fields[12])
    tree, before = {root}, 0
    while len(tree) != before:
        before = len(tree)
        tree |= {child for child, parent in parents.items() if parent in tree}
    second = os.sysconf("SC_CLK_TCK")
    return {process: ticks[process] / second for process in tree if process in ticks}
