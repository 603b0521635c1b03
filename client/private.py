"""Folders and files that are this user's alone: sockets, secrets of an attempt."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from base_model.files import sync
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
        sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise MachineError(
            f"{path} cannot be written: {error.strerror}", "check the disk and the folder"
        ) from None
