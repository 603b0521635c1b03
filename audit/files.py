"""Files that an auditor is asked to write."""

from __future__ import annotations

from pathlib import Path

from protocol.errors import ArtefactError
from storage import whole


def write_whole(path: Path, data: bytes) -> None:
    """A file, whole, that a caller named. Raises ArtefactError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.write_whole(path, data)
    except OSError as error:
        raise ArtefactError(f"{path} cannot be written: {error.strerror}", "name another") from None
