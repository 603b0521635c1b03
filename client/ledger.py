"""What this client's data has spent, in a file of its own: across runs, plans and restarts. (P-7.5)"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Protocol

from client.journal import Journal, Mark
from protocol.privacy.accounting import Spent
from protocol.privacy.ledger import Entry, Tally, parse_entries

MOST_ACCOUNTS = 4096  # ledgers that a process keeps in mind: those of simulated clients


class Account:
    """The entries of a ledger added up: by plan, and over all of them."""

    def __init__(self) -> None:
        self.plans: dict[str, Tally] = {}
        self.whole = Spent()
        self.count = 0

    def add(self, entry: Entry) -> None:
        """One more."""
        self.plans.setdefault(entry.plan, Tally()).add(entry)
        self.whole, self.count = self.whole + entry.spent, self.count + 1


Allowed = Callable[[Account], None]


class Ledger(Protocol):
    """Where entries are kept."""

    def entries(self) -> list[Entry]:
        """All of them, oldest first."""
        ...

    def account(self) -> Account:
        """The same added up; not to be changed."""
        ...

    def spend(self, entry: Entry, allowed: Allowed) -> None:
        """Keep ``entry`` unless ``allowed`` raises for what is there; it is safe when this returns."""
        ...


_accounts: dict[Path, tuple[Mark, Account]] = {}
_turn = Lock()  # clients of a simulation may be side by side; a file is one client's


class FileLedger:
    """One JSON line per opened sum, only ever appended to, readable by its owner alone.

    Two entries with the same numbers are two sums: a coordinator chooses the numbers. A process reads every
    line once, and then the new ones.
    """

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path, "the privacy ledger")

    def entries(self) -> list[Entry]:
        """All entries; none when there is no file yet. Raises ArtefactError for a damaged line."""
        return parse_entries(self._journal.text(), source=str(self._journal.path))

    def account(self) -> Account:
        """All entries added up. Raises ArtefactError for a damaged line."""
        path = self._journal.path.absolute()
        with _turn:
            mark, account = _accounts.pop(path, (Mark(), Account()))
        same, new, after = self._journal.since(mark)
        if not same:
            account = Account()
        text, first = "".join(f"{line}\n" for line in new), account.count + 1
        for entry in parse_entries(text, source=str(self._journal.path), first=first):
            account.add(entry)
        with _turn:
            _accounts[path] = after, account
            if len(_accounts) > MOST_ACCOUNTS:
                del _accounts[next(iter(_accounts))]
        return account

    def spend(self, entry: Entry, allowed: Allowed) -> None:
        """Check and append as one. Raises what ``allowed`` raises, or MachineError."""
        self._journal.append(entry.model_dump_json(), lambda: allowed(self.account()))
