"""Files and folders that are there whole or not at all, whenever the power goes or the process is killed.

Each is made beside its place as ``.NAME.tmp``, flushed, and renamed. One process at a time makes it, since
it holds a lock on what it makes; so what a killed one has left is known by its free lock, and the next one
that writes there removes it. Nothing is written through a link, or into what somebody else has laid there.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor

PUBLIC, PRIVATE = 0o666, 0o600  # of a file, before the umask
TURN_S = 0.01  # between looks whether another writer has finished


def write_whole(
    path: Path,
    data: bytes | memoryview,
    *,
    mode: int = PUBLIC,
    new: bool = False,
    durable: bool = True,
) -> None:
    """Replace ``path`` by ``data``, on disk when this returns unless it need not be ``durable``.

    Raises OSError; FileExistsError where ``path`` is there already and must be ``new``.
    """
    with (
        _appearing(path, _new_file(mode), new=new, durable=durable) as (_, descriptor),
        open(descriptor, "wb", closefd=False) as file,
    ):
        file.write(data)


@contextmanager
def file_that_appears(path: Path, *, mode: int = PUBLIC) -> Iterator[Path]:
    """An empty file, for who has to write by name, that becomes ``path`` when the block succeeds."""
    with _appearing(path, _new_file(mode)) as (temporary, _):
        yield temporary


@contextmanager
def folder_that_appears(path: Path, *, mode: int = 0o777) -> Iterator[Path]:
    """An empty folder that becomes ``path``, which is not there or empty, when the block succeeds."""

    def make(temporary: Path) -> int:
        temporary.mkdir(mode)
        try:
            return os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:  # somebody has taken it for a leftover
            raise FileExistsError from None

    with _appearing(path, make) as (temporary, _):
        yield temporary


def _new_file(mode: int) -> Callable[[Path], int]:
    return lambda path: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)


@contextmanager
def _appearing(
    path: Path, make: Callable[[Path], int], *, new: bool = False, durable: bool = True
) -> Iterator[tuple[Path, int]]:
    """What ``make`` makes beside ``path``, by its name and its descriptor."""
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = _claimed(temporary, make)
    try:
        yield temporary, descriptor
        if durable:
            sync_all(temporary)
        if not _lies_at(descriptor, temporary):
            raise OSError(errno.ESTALE, "somebody else has changed its folder", str(temporary))
        (_place_new if new else os.replace)(temporary, path)
    except BaseException:
        if _lies_at(descriptor, temporary):
            remove(temporary)
        raise
    finally:
        os.close(descriptor)
    if durable:
        sync(path.parent)


def _place_new(temporary: Path, path: Path) -> None:
    """Name a file as ``os.replace`` does, but never in the place of another. Raises FileExistsError."""
    try:
        os.link(temporary, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: what comes between look and move is lost
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(temporary, path)
        return
    temporary.unlink()


def _claimed(temporary: Path, make: Callable[[Path], int]) -> int:
    """What is made is ours alone, by the lock on its descriptor, as long as that is open."""
    while True:
        try:
            descriptor = make(temporary)
        except FileExistsError:
            _clear(temporary)
            continue
        lock_descriptor(descriptor, poll_interval=TURN_S)
        if _lies_at(descriptor, temporary):
            return descriptor
        os.close(descriptor)  # somebody has taken it for a leftover


def _clear(temporary: Path) -> None:
    """Wait for whoever is writing there; a leftover, or what is none of ours, is removed."""
    try:
        descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    except OSError:  # a link, a socket
        remove(temporary)
        return
    try:
        lock_descriptor(descriptor, poll_interval=TURN_S)
        if _lies_at(descriptor, temporary):
            remove(temporary)
    finally:
        os.close(descriptor)


def _lies_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def move_whole(source: Path, target: Path) -> None:
    """Give a file or folder that is finished its name; it is on disk when this returns. Raises OSError."""
    sync_all(source)
    os.replace(source, target)
    sync(target.parent)


@contextmanager
def appending(path: Path, *, mode: int = PUBLIC) -> Iterator[Callable[[bytes], None]]:
    """A call that appends to ``path``, while nobody else does: all of its bytes, on disk, or none of them.

    A disk that fills up takes a part without an error. Raises OSError.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode)

    def append(data: bytes) -> None:
        before = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)
            raise

    try:
        lock_descriptor(descriptor, poll_interval=TURN_S)
        yield append
    finally:
        os.close(descriptor)


def sync_all(path: Path) -> None:
    """Flush a file, or a folder with everything in it, to disk."""
    for entry in (*path.rglob("*"), path):
        sync(entry)


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Whatever it is, or is not; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
