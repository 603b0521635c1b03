"""The copy of the graph that a device maps: two makers at once, a disk that fills up."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from edge_runtime import mapped_graph
from edge_runtime.mapped_graph import DATA, open_mapped

ROOT = Path(__file__).resolve().parents[2]


def stamp(cache: Path) -> tuple[int, int, int]:
    (folder,) = (one for one in cache.iterdir() if one.is_dir())
    stat = (folder / DATA).stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def test_what_one_process_has_mapped_no_other_writes_to(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agent and service start together. A file that is cut short under a mapping kills who reads it."""
    cache, seen = tmp_path / "graph", []
    real, slow, paused, go_on = mapped_graph.ort.SessionOptions, [True], *two_events()

    def options() -> Any:
        if threading.current_thread().name == "first" and slow:
            slow.clear()
            paused.set()
            go_on.wait(60)
        return real()

    monkeypatch.setattr(mapped_graph.ort, "SessionOptions", options)

    def open_one() -> None:
        open_mapped(tiny_base, cache, threads=1)
        seen.append(stamp(cache))

    first = threading.Thread(target=open_one, name="first")
    second = threading.Thread(target=open_one, name="second")
    first.start()
    assert paused.wait(60)
    second.start()
    second.join(1.0)
    go_on.set()
    first.join()
    second.join()
    assert seen == [stamp(cache)] * 2


def two_events() -> tuple[threading.Event, threading.Event]:
    return threading.Event(), threading.Event()


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_copy_that_does_not_fit_leaves_nothing(
    tiny_base: Path, tmp_path: Path, share: float
) -> None:
    """What it left would keep the disk full, and updates could not be written down."""
    whole = tmp_path / "whole"
    open_mapped(tiny_base, whole, threads=1)
    limit, cache = int(stamp(whole)[2] * share), tmp_path / "graph"
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            open_mapped(tiny_base, cache, threads=1)
            os._exit(7)
        finally:
            os._exit(8)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7  # it was opened all the same
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_no_copy_is_begun_without_room_for_it(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1000))
    assert open_mapped(tiny_base, tmp_path / "graph", threads=1).session is not None
    assert [path.name for path in (tmp_path / "graph").iterdir()] == [".lock"]


READS = """
import mmap, sys
from edge_runtime.probe import own_bytes
size = int(sys.argv[2])
before = own_bytes()
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert sum(mapped[:: mmap.PAGESIZE]) == 0
print(own_bytes() - before)
kept = bytearray(b"x") * size
print(own_bytes() - before)
"""


def test_pages_of_the_mapped_graph_are_not_a_releases_memory(tmp_path: Path) -> None:
    """The first answer brings the base's weights in: a probe must not blame the release for them.

    In a process of its own: one that has given memory back to its allocator takes it from there again.
    """
    size, path = 64 * 2**20, tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * (size // 256))
    command = [sys.executable, "-c", READS, str(path), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    mapped, kept = map(int, done.stdout.split())
    assert mapped < size // 4
    assert kept > size // 2
