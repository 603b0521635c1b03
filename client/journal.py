"""A file of lines that only grows: what a site must not forget, whatever restarts or runs beside it."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from protocol.errors import MachineError
from protocol.regular_files import read_regular_text

MOST_JOURNAL = 2**30  # bytes: a line a round, for longer than any site lives


class Journal:
    """Readable by its owner alone. ``what`` names it in errors."""

    def __init__(self, path: Path, what: str) -> None:
        self.path, self._what = path, what

    def text(self) -> str:
        """All lines; empty when there is no file yet. Raises MachineError."""
        try:
            return read_regular_text(self.path, most=MOST_JOURNAL)
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise self.unusable("read", error) from None

    def append(self, line: str, allowed: Callable[[], None]) -> None:
        """Check and append as one: processes side by side share the file. On disk when it returns.

        Raises what ``allowed`` raises, and MachineError when the line cannot be kept; then nothing may
        be revealed.
        """

        def made() -> str:
            allowed()
            return line

        self.append_made(made)

    def append_made(self, make: Callable[[], str]) -> None:
        """The same for a line that is only made, or refused, while nobody else writes."""
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise self.unusable("written", error) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            _appended(file, (make() + "\n").encode())
            os.fsync(file)
        except OSError as error:
            raise self.unusable("written", error) from None
        finally:
            os.close(file)

    def unusable(self, verb: str, error: Exception) -> MachineError:
        """The error of a journal that cannot be used."""
        return MachineError(
            f"{self.path}: {self._what} cannot be {verb} ({type(error).__name__})",
            "without it nothing is revealed; check the file and its folder",
        )


def _appended(file: int, data: bytes) -> None:
    """All of ``data``, or nothing of it: a disk that fills up takes a part without an error."""
    before = os.fstat(file).st_size
    try:
        if os.write(file, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(file, before)
        raise
