"""What this client's data has spent, in a file of its own: across runs, plans and restarts. (P-7.5)"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from client.journal import Journal
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
        self._journal = Journal(path, "the privacy ledger")

    def entries(self) -> list[Entry]:
        """All entries; none when there is no file yet. Raises ArtefactError for a damaged line."""
        return parse_entries(self._journal.text(), source=str(self._journal.path))

    def spend(self, entry: Entry, allowed: Allowed) -> None:
        """Check and append as one. Raises what ``allowed`` raises, or MachineError."""
        self._journal.append(entry.model_dump_json(), lambda: allowed(self.entries()))
