"""A lock file that names the process which holds it; it cannot outlive that process."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from protocol.errors import MachineError

LOOK_S = 1.0  # who only looks whether a lock is held has it for a moment


@contextmanager
def held_lock(path: Path) -> Iterator[None]:
    """Hold ``path`` for the length of the block. Raises MachineError when another process does."""
    with path.open("a+", encoding="ascii") as file:
        until = time.monotonic() + LOOK_S
        while not _taken(file):
            if time.monotonic() > until:
                raise MachineError(
                    f"{path.parent}: it runs already (process {holder(path)})", "stop it first"
                )
            time.sleep(0.02)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def holder(path: Path) -> int | None:
    """The process that holds the lock, None when nobody does."""
    try:
        with path.open(encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                text = file.read().strip()
                return int(text) if text.isdigit() else 0
    except OSError:
        return None
    return None


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock."""
    return holder(path) is not None


def stop_holder(path: Path, *, patience_s: float) -> bool:
    """Ask the holder to end and wait for it, then insist; whether there was one.

    Raises MachineError for one that does not end, or is none of this machine's processes: in another
    container, or behind a network file system, its number is somebody else's here.
    """
    process = holder(path)
    if not process:
        return False
    if not _has_open(process, path):
        raise MachineError(
            f"{path.parent}: it runs as process {process} of another machine or container",
            "stop it there",
        )
    for number, seconds in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.kill(process, number)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if holder(path) != process:
                return True
            time.sleep(0.05)
    raise MachineError(f"process {process} does not end", "end it by hand")


def _has_open(process: int, path: Path) -> bool:
    """Whether a process of this machine has the file open; where there is no /proc, its word is taken."""
    if not Path("/proc/self/fd").is_dir():
        return True
    try:
        wanted = path.stat()
        opened = list(Path(f"/proc/{process}/fd").iterdir())
    except OSError:
        return False
    for entry in opened:
        with suppress(OSError):
            if os.path.samestat(entry.stat(), wanted):
                return True
    return False
