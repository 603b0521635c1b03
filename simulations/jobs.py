"""``--jobs``: how many clients of a simulation train at a time."""

from __future__ import annotations

from typing import Annotated

import typer

from client.engine.threads import cores, threads_of_openmp
from protocol.section import MOST_THREADS

# MiB for frozen weights as floats in a process of simulated clients, which share them.
EXPAND_MIB = 512

Jobs = Annotated[
    int,
    typer.Option(
        "--jobs",
        min=0,
        max=MOST_THREADS,
        help="clients that train at a time, each in the memory of its batches; 0: as many as OMP_NUM_THREADS "
        "says, or as there are cores, of a Ray cluster all of its",
    ),
]


def jobs_of(wanted: int, ray: str = "") -> int:
    """``wanted``, or where it is 0 what this process may use; of a Ray cluster all that it has stays 0."""
    if ray:
        return wanted
    return wanted or threads_of_openmp() or cores()
