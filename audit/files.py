"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from protocol.errors import ArtefactError


def write_whole(path: Path, data: bytes) -> None:
    """Replace ``path`` by one rename, on disk when this returns. Raises ArtefactError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ArtefactError(f"{path} cannot be written: {error.strerror}", "name another") from None
