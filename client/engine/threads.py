"""How many threads this process is to use, where nobody says."""

from __future__ import annotations

import os


def threads_of_openmp() -> int:
    """The first of OMP_NUM_THREADS, which may be a list, one number per level; 0 where there is none."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def cores() -> int:
    """Those that the system lets this process use."""
    if hasattr(os, "sched_getaffinity"):  # of Linux alone
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
