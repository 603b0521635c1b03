"""Memory in huge pages: which memory it is, and that nothing in it changes."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_runtime import huge_pages
from edge_runtime.huge_pages import HUGE, gather, regions

MAPS = """\
00400000-00c00000 r-xp 00000000 fd:00 1234 /usr/bin/python3
00c00000-01400000 rw-p 00000000 fd:00 1234 /usr/bin/python3
01500000-02100000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000400000 rw-p 00000000 00:00 0
7f0000500000-7f0000600000 rw-p 00000000 00:00 0
7f0000700000-7f0000f00000 rw-s 00000000 00:01 77 /dev/shm/x
7f0001000000-7f0001800000 r--p 00000000 00:00 0
7f0002000001-7f0002600001 rw-p 00000000 00:00 0 \n\
7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0 [stack]
"""


def test_it_is_whole_huge_pages_of_memory_that_is_this_process_s_alone() -> None:
    assert list(regions(MAPS)) == [
        (0x01600000, 0x02000000),
        (0x7F0000000000, 0x7F0000400000),
        (0x7F0002200000, 0x7F0002600000),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has them")
def test_what_is_gathered_stays_what_it_was() -> None:
    with mmap.mmap(-1, 8 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        numbers = np.frombuffer(memory, np.uint32)
        numbers[:] = np.random.default_rng(0).integers(0, 2**32, len(numbers), np.uint32)
        before, address = numbers.copy(), numbers.ctypes.data
        assert any(start <= address + HUGE < end for start, end in regions(_own_maps()))
        assert gather() % HUGE == 0
        assert np.array_equal(numbers, before)
        del numbers


def test_a_system_without_them_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "regions", lambda _maps: iter([(0, HUGE)]))  # nobody's memory
    assert gather() == 0


def _own_maps() -> str:
    return Path("/proc/self/maps").read_text()
