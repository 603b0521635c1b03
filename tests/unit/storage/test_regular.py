"""What reading a file takes of memory, and that all of one that has grown is read."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from storage.regular import PIECE, read_regular

UNSIZED = Path("/proc/self/mountinfo")  # a regular file by its kind, of 0 bytes as the system says


def test_a_read_claims_no_more_than_the_file_has(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"x" * 1000)
    tracemalloc.start()
    assert read_regular(path, most=2**31 - 1) == b"x" * 1000
    assert read_regular(path, most=1000) == b"x" * 1000
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < PIECE


@pytest.mark.skipif(not UNSIZED.is_file(), reason="no /proc")
def test_what_a_file_has_beyond_its_size_is_read_and_counted() -> None:
    whole = UNSIZED.read_bytes()
    assert len(whole) > 2
    assert read_regular(UNSIZED) == whole
    assert read_regular(UNSIZED, most=len(whole)) == whole
    for most in (0, 1, len(whole) - 1):
        with pytest.raises(OSError, match=f"longer than {most} bytes"):
            read_regular(UNSIZED, most=most)
