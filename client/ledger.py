"""What this client's data has spent, in a file of its own: across runs, plans and restarts. (P-7.5)"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from protocol.errors import MachineError
from protocol.privacy.ledger import Entry, parse_entries

Allowed = Callable[[list[Entry]], None]


class Ledger(Protocol):
    """Where entries are kept."""

    def entries(self) -> list[Entry]:
        """All of them, oldest first."""
        ...

    def spend(self, entry: Entry, allowed: Allowed) -> None:
        """Keep ``entry`` unless ``allowed`` raises for what is there; it is safe when this returns."""
        ...


class FileLedger:
    """One JSON line per opened sum, only ever appended to, readable by its owner alone.

    Two entries with the same numbers are two sums: a coordinator chooses the numbers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[Entry]:
        """All entries; none when there is no file yet. Raises ArtefactError for a damaged line."""
        try:
            text = self.path.read_text("utf-8")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise self._unusable("read", error) from None
        return parse_entries(text, source=str(self.path))

    def spend(self, entry: Entry, allowed: Allowed) -> None:
        """Check and append as one: runs side by side share the file.

        Raises what ``allowed`` raises, and MachineError when the entry cannot be kept; then nothing
        may be revealed.
        """
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._unusable("written", error) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            allowed(self.entries())
            os.write(file, (entry.model_dump_json() + "\n").encode())
            os.fsync(file)
        except OSError as error:
            raise self._unusable("written", error) from None
        finally:
            os.close(file)

    def _unusable(self, verb: str, error: Exception) -> MachineError:
        return MachineError(
            f"{self.path}: the privacy ledger cannot be {verb} ({type(error).__name__})",
            "without it nothing is revealed; check the file and its folder",
        )
