"""What a verdict does not cover: every file and every claim that no check has consumed, by name. (P-8.16)

The rest of a run's folder is listed by walking it: a file is either read by a check, or it is here. What of
a file or leaf that was read rests on somebody's word is noted where it is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from audit.report import Uncovered
from audit.sources import PUBLISHED, Source
from protocol.encoding import base64_text
from protocol.errors import printable
from protocol.transparency.note import VerifierKey, lines_naming

SPELLED = "it says the same in another form than the one that a coordinator writes"
OTHERS = "signature lines of keys that neither the log nor its plan names"
BESIDE = "beside the published files: nothing in the log is about it"
WHY = (
    (
        re.compile(r"log\.key|sequence\.json|\.lock|log/(inbox|refused)/.*|rounds/\..*"),
        "the coordinator's own state: nothing that is published follows from it",
    ),
    (
        re.compile(r"rounds/[0-9]+\.attempt[0-9]+\.json"),
        "the coordinator's word about an attempt that failed",
    ),
    (
        re.compile(
            r"(report\.html|metrics\.jsonl|audit\.json|yardsticks\.json|timings\.json|experiment\.json)"
        ),
        "the run's own account of itself: `fedge audit verify` and `fedge report` make theirs anew",
    ),
    (PUBLISHED, "a file of a name that runs publish: no leaf that was checked is about it"),
)
NO_LIST = "an address gives no list of its files: what else lies there is not known"


class Watched:
    """A source that remembers which files were read."""

    def __init__(self, source: Source) -> None:
        self._source, self.where = source, source.where
        self.seen: set[str] = set()

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        """As :meth:`Source.read`."""
        data = self._source.read(name, start=start, length=length)
        self.seen.add(name)
        return data

    def exists(self, name: str) -> bool:
        """As :meth:`Source.exists`."""
        return self._source.exists(name)

    def names(self) -> Iterator[str] | None:
        """As :meth:`Source.names`."""
        return self._source.names()


@dataclass
class Coverage:
    """What was left out so far; :meth:`leave` adds to it."""

    left: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    tiles: set[str] = field(default_factory=set)  # compared with the tree, every byte

    def leave(self, name: str, why: str, *parts: str) -> None:
        """``parts`` of a file or leaf, without any all of it, are not covered: ``why``."""
        self.left.setdefault((printable(name), why), set()).update(parts)

    def spelled(self, name: str, data: bytes, ours: bytes) -> None:
        """Note a file whose meaning was checked, and which has other bytes than ours."""
        if data != ours:
            self.leave(name, SPELLED, "spelling")

    def signed_by_others(self, name: str, note: str, known: Sequence[VerifierKey]) -> None:
        """Note the signature lines of a note that nobody checks: unknown keys', and repeated ones."""
        lines = note.rpartition("\n\n")[2].count("\n")
        if lines != sum(bool(lines_naming(note, key)) for key in known):
            self.leave(name, OTHERS, "signatures")

    def rest(self, source: Watched) -> tuple[Uncovered, ...]:
        """All of it, with every file of the source that was not read."""
        names = source.names()
        if names is None:
            self.leave(source.where, NO_LIST, "other files")
        for name in names or ():
            seen = self.tiles if name.startswith("log/tile/") else source.seen
            if name not in seen:
                self.leave(name, _why(name))
        return tuple(
            Uncovered(name=name, parts=tuple(sorted(parts)), why=why)
            for (name, why), parts in sorted(self.left.items())
        )


def batch_bytes(start: int, entries: Iterable[bytes], note: str) -> bytes:
    """A batch as a coordinator writes it. (P-8.4)"""
    body = {
        "start": start,
        "entries": [base64_text(entry) for entry in entries],
        "checkpoint": note,
    }
    return (json.dumps(body, indent=1) + "\n").encode()


def _why(name: str) -> str:
    return next((why for kind, why in WHY if kind.fullmatch(name)), BESIDE)
