"""A process's large memory in huge pages: a matrix is then read with a 512th of the look-ups of addresses.

For a process that is to write many tokens: gathering 200 MB takes half a second, and a token then up to a
fifth less (docs/adr/0054). Linux can from 6.1 on; elsewhere nothing happens. Contents and addresses stay.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

HUGE = 2**21  # bytes; of x86 and, with pages of 4 KiB, of ARM
ADVISED, NOW = 14, 25  # MADV_HUGEPAGE, MADV_COLLAPSE
# Private memory that is no file's: start-end, rights, offset, device, inode, and at most the heap's name.
PRIVATE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0\s*(?:\[heap\])?")


def gather() -> int:
    """Hold what this process has in huge pages; how many bytes, 0 where the system offers none."""
    try:
        maps = Path("/proc/self/maps").read_text("utf-8")
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError, UnicodeDecodeError):
        return 0
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    gathered = 0
    for start, end in regions(maps):
        if advise(start, end - start, ADVISED):
            continue
        # One by one: memory that was given back meanwhile must not end the rest.
        gathered += sum(HUGE for place in range(start, end, HUGE) if not advise(place, HUGE, NOW))
    return gathered


def regions(maps: str) -> Iterator[tuple[int, int]]:
    """(start, end) of whole huge pages in private memory, from the text of ``/proc/PID/maps``."""
    for line in maps.splitlines():
        match = PRIVATE.fullmatch(line)
        if match:
            start, end = -(-int(match[1], 16) // HUGE) * HUGE, int(match[2], 16) // HUGE * HUGE
            if start < end:
                yield start, end
