"""What this client's data has spent, in a file of its own: across runs, plans and restarts. (P-7.5)"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from protocol.errors import MachineError
from protocol.privacy.ledger import Entry, parse_entries


class Ledger(Protocol):
    """Where entries are kept."""

    def entries(self) -> list[Entry]:
        """All of them, oldest first."""
        ...

    def add(self, entry: Entry) -> None:
        """Keep ``entry``, once; it is safe when this returns."""
        ...


class FileLedger:
    """One JSON line per entry, only ever appended to, readable by its owner alone."""

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

    def add(self, entry: Entry) -> None:
        """Append; raises MachineError when it cannot be kept: then nothing may be revealed."""
        if any(entry.same_sum(known) for known in self.entries()):
            return
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, (entry.model_dump_json() + "\n").encode())
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise self._unusable("written", error) from None

    def _unusable(self, verb: str, error: Exception) -> MachineError:
        return MachineError(
            f"{self.path}: the privacy ledger cannot be {verb} ({type(error).__name__})",
            "without it nothing is revealed; check the file and its folder",
        )
