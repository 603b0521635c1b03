"""Folders and files that are this user's alone: secrets of an attempt."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from protocol.errors import MachineError
from storage.regular import read_regular
from storage.whole import PRIVATE, write_whole


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


def private_bytes(path: Path, *, most: int) -> bytes | None:
    """What ``path`` holds, up to ``most`` bytes; None where there is no file. Raises MachineError."""
    try:
        return read_regular(path, most=most)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MachineError(
            f"{path}: cannot be read: {error.strerror}", "check the file and its folder"
        ) from None


def write_private(path: Path, data: bytes) -> None:
    """Replace ``path`` by one rename, mode 0600, on disk when this returns. Raises MachineError."""
    try:
        write_whole(path, data, mode=PRIVATE)
    except OSError as error:
        raise MachineError(
            f"{path} cannot be written: {error.strerror}", "check the disk and the folder"
        ) from None
