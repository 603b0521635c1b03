"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from protocol.errors import ArtefactError


def write_whole(path: Path, data: bytes) -> None:
    """:func:`replace_whole` of a file that a caller named. Raises ArtefactError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(path, data)
    except OSError as error:
        raise ArtefactError(f"{path} cannot be written: {error.strerror}", "name another") from None


def replace_whole(path: Path, data: bytes) -> None:
    """Replace ``path`` by one rename, on disk when this returns. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
