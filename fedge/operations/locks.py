"""A lock file that names the process which holds it; it cannot outlive that process."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from protocol.errors import MachineError


@contextmanager
def held_lock(path: Path) -> Iterator[None]:
    """Hold ``path`` for the length of the block. Raises MachineError when another process does."""
    with path.open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MachineError(
                f"{path.parent}: it runs already (process {holder(path)})", "stop it first"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


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
    """Ask the holder to end and wait for it, then insist; whether there was one."""
    process = holder(path)
    if not process:
        return False
    for number, seconds in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.kill(process, number)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if holder(path) != process:
                return True
            time.sleep(0.05)
    raise MachineError(f"process {process} does not end", "end it by hand")
