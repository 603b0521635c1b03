"""The lock of a run folder: one coordinator at a time. (docs/adr/0006)"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from protocol.errors import ArtefactError

LOOK_S = 1.0  # who only looks whether the folder is in use has its lock for a moment


def lock_folder(folder: Path) -> IO[bytes]:
    """The folder's lock, held while it is open; its owner's alone, since whoever reads it may hold it.

    Raises ArtefactError when another coordinator holds it.
    """
    file = os.fdopen(os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    with suppress(OSError):  # another user's, of an earlier run
        os.fchmod(file.fileno(), 0o600)
    until = time.monotonic() + LOOK_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() < until:
                time.sleep(0.02)
                continue
            file.close()
            raise ArtefactError(
                f"{folder} is in use by another coordinator", "wait for it, or stop it first"
            ) from None
        return file
