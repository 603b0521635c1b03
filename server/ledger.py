"""The coordinator's privacy ledger: read once, added up, and from then on only appended to. (P-7.5)

Whoever holds it holds the run folder's lock, so nobody else writes there. A line costs the same, be it the
tenth or the ten thousandth.
"""

from __future__ import annotations

from array import array
from pathlib import Path

from protocol.errors import ArtefactError
from protocol.privacy.ledger import MOST_LEDGER, Entry, Tally, parse_entries
from storage.regular import open_regular
from storage.whole import appending


class RunLedger:
    """The lines of the file at ``path``. Raises ArtefactError for a damaged line, OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.tally = Tally()
        self._ends = array("Q", [0])  # of lines, in bytes
        self._latest: list[Entry] = []  # of the last round
        text = self._text(0)
        for line, entry in zip(text.splitlines(keepends=True), self._parsed(text), strict=True):
            self._add(entry, len(line.encode()))

    def _add(self, entry: Entry, size: int) -> None:
        same_round = self.tally.last is not None and self.tally.last.round == entry.round
        self._latest = [*self._latest, entry] if same_round else [entry]
        self.tally.add(entry)
        self._ends.append(self._ends[-1] + size)

    def _text(self, start: int) -> str:
        try:
            with open_regular(self._path, most=MOST_LEDGER) as file:
                file.seek(start)
                return file.read().decode("utf-8")
        except FileNotFoundError:
            return ""
        except UnicodeDecodeError:
            raise ArtefactError(
                f"{self._path} is no text", "restore the ledger; without it no privacy is spent"
            ) from None

    def _parsed(self, text: str) -> list[Entry]:
        return parse_entries(text, source=str(self._path))

    def since(self, number: int) -> list[Entry]:
        """The entries behind the first ``number``."""
        behind = number < self.tally.count
        return self._parsed(self._text(self._ends[number])) if behind else []

    def spend(self, entry: Entry) -> None:
        """Add a line: on disk before anybody is asked for a share. A sum that has one is not spent twice."""
        last = self.tally.last
        known = self._latest if last is None or entry.round >= last.round else self.since(0)
        if any(entry.same_sum(each) for each in known):
            return
        line = (entry.model_dump_json() + "\n").encode()
        with appending(self._path) as append:
            append(line)
        self._add(entry, len(line))
