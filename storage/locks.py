"""Lock files: each names the process that holds it, belongs to its owner alone, and ends with its holder.

The system lets go of a lock when the process ends, however it ends; the file stays. By filelock; only a look
whether a lock is held is asked of the system itself, since it must keep no holder and no other look out.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from protocol.errors import MachineError

LOOK_S = 1.0  # who only looks whether a lock is held has it for a moment


class Held(Protocol):
    """A lock that is held until it is released, or the process ends."""

    def release(self) -> None:
        """Let go of it."""
        ...


def take(path: Path, *, seconds: float = LOOK_S) -> Held | None:
    """The lock file ``path``; None when another has it for all of ``seconds``. Raises OSError."""
    from filelock import FileLock, Timeout  # loads asyncio; few who start need a lock

    lock = FileLock(
        path,
        mode=0o600,
        timeout=-1 if math.isinf(seconds) else seconds,
        poll_interval=0.02,
        thread_local=False,
        fallback_to_soft=False,
        on_acquired=_sign,
    )
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def _sign(descriptor: int) -> None:
    with suppress(OSError):  # another user's, of an earlier run
        os.fchmod(descriptor, 0o600)  # whoever reads it may hold it
    with suppress(OSError):  # a full disk
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


@contextmanager
def locked(path: Path, *, seconds: float = math.inf) -> Iterator[bool]:
    """Hold the lock file ``path``; the block gets False when another has it for all of ``seconds``.

    Raises MachineError.
    """
    try:
        held = take(path, seconds=seconds)
    except OSError as error:
        raise MachineError(
            f"{path} cannot be locked: {error.strerror}", "check the folder"
        ) from None
    try:
        yield held is not None
    finally:
        if held is not None:
            held.release()


def holder(path: Path) -> int | None:
    """The process that holds the lock (0: it has not said), None when nobody does."""
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
