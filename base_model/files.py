"""Files of a base folder: hashing, folders that appear whole or not at all, locks."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import ArtefactError, FedgeError, MachineError
from protocol.regular_files import sha256_of_regular

# A library written in Rust says the number only in its text.
NUMBER = re.compile(r"os error (\d+)")


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in chunks."""
    return sha256_of_regular(path)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """What the system says against writing ``out`` becomes a MachineError; its cause is the system's."""
    try:
        yield
    except OSError as error:
        raise _refused(out, error.errno or 0) from None
    except MemoryError:
        raise MachineError(f"{out}: there is not enough memory", "use a larger machine") from None
    except Exception as error:
        number = NUMBER.search(str(error))
        if number is None or isinstance(error, FedgeError):
            raise
        raise _refused(out, int(number[1])) from None


def _refused(out: Path, number: int) -> MachineError:
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return MachineError(
        f"{out} cannot be written: {os.strerror(number)}",
        "make room, or name another disk" if full else "name a folder that you may write to",
    )


@contextmanager
def folder_that_appears(out: Path) -> Iterator[Path]:
    """A temporary sibling of ``out`` that becomes ``out`` when the block succeeds.

    Raises ArtefactError when ``out`` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArtefactError(f"{out} exists already", "choose another --out or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".{out.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            sync(path)
        sync(temporary)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
        sync(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
