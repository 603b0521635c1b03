"""Folders and files that are this user's alone: sockets, secrets of an attempt."""

from __future__ import annotations

import fcntl
import math
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from protocol.errors import MachineError


def private_folder(path: Path) -> Path:
    """``path``, made with mode 0700 when it is not there.

    Raises MachineError for one that is another user's, a link, or open to others.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise MachineError(f"{path}: no usable folder: {error.strerror}", "name another") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise MachineError(f"{path} is not a folder of this user's own", "name another")
    if found.st_mode & 0o077:
        raise MachineError(f"{path} is open to other users", f"chmod 700 {path}")
    return path


def write_private(path: Path, data: bytes) -> None:
    """Replace ``path`` by one rename, mode 0600, on disk when this returns. Raises MachineError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise MachineError(
            f"{path} cannot be written: {error.strerror}", "check the disk and the folder"
        ) from None


@contextmanager
def locked(path: Path, *, seconds: float = math.inf) -> Iterator[bool]:
    """Hold the lock file ``path``; the block gets False when another has it for all of ``seconds``.

    The system lets go of it when the process ends, however it ends. Raises MachineError.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise MachineError(
            f"{path} cannot be locked: {error.strerror}", "check the folder"
        ) from None
    try:
        yield _lock(file, seconds)
    finally:
        os.close(file)


def _lock(file: int, seconds: float) -> bool:
    if math.isinf(seconds):
        fcntl.flock(file, fcntl.LOCK_EX)
        return True
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        else:
            return True


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
