"""Where a run's published files are read from: a folder, or a web server's copy of one. (P-8.4)

A source gives bytes by name and nothing else. Names are those of P-8.4, so that no log can make an
auditor read another file of its own machine; sizes are bounded, so that no server can fill its memory.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from protocol.addresses import shown_address, web_fault
from protocol.errors import ArtefactError, ProofError
from protocol.privacy.ledger import MOST_LEDGER
from protocol.transparency.lists import list_path
from protocol.transparency.sum_leaves import MOST_BOXES_BYTES
from protocol.web_page import REMEDY as WEB_PAGE
from storage.downloads import CutError, PageError, opened
from storage.regular import open_regular

MOST_BYTES = 2**31  # of one file: a masked vector of 500 million coordinates in 32 bits
MOST_OF = (  # of those that have to be small, in bytes
    (re.compile(r"log/(key|policy|checkpoint)"), 2**20),
    (re.compile(r"log/lists/.*"), 2**23),
    (re.compile(r"log/tile/entries/.*"), 256 * (2 + 65_535)),
    (re.compile(r"log/tile/.*"), 256 * 32),
    (re.compile(r".*\.boxes\.json"), MOST_BOXES_BYTES),
    (re.compile(r"privacy\.jsonl"), MOST_LEDGER),
    (re.compile(r".*\.(json|jsonl|chunks|tlog-proof)"), 2**26),
    (re.compile(r".*log\.batch"), 2**29),
)
TIMEOUT_S = 60.0  # without a byte
LONGEST_S = 3600.0  # for one file
REMEDY = "fetch the run again, or ask its coordinator for the file"
_ROUND = r"rounds/[0-9]{4,9}"
PUBLISHED = re.compile(
    r"plan\.json|manifest\.json|rosters/[0-9a-f]{64}\.json"
    r"|log/(key|policy|checkpoint|log\.batch)|log/lists/[0-9a-f]{64}"
    r"|log/tile/([0-9]{1,2}|entries)/(x[0-9]{3}/){0,6}[0-9]{3}(\.p/[0-9]{1,3})?"
    rf"|{_ROUND}/(log\.batch|checkpoint\.safetensors)"
    rf"|{_ROUND}/adapter/[A-Za-z0-9][A-Za-z0-9._-]{{0,99}}"
    rf"|{_ROUND}/sums/[0-9]{{1,6}}\.(sum|boxes\.json)"
    rf"|{_ROUND}/vectors/[0-9]{{1,6}}/[0-9a-f]{{32}}(\.chunks)?"
)

# The coordinator's own: not published, and compared with the log where they are.
OWN = re.compile(rf"privacy\.jsonl|summary\.json|evaluations\.json|{_ROUND}/record\.json")


class MissingError(ArtefactError):
    """A published file that is not there."""


def fetch_list(source: Source, digest: str) -> bytes:
    """A list that a leaf has no room for. Raises ProofError when it cannot be read. (P-8.19)"""
    try:
        return source.read(list_path(digest))
    except ArtefactError as error:  # a fault of its leaf, not the end of the audit
        raise ProofError(error.cause, error.remedy) from None


class Source(Protocol):
    """A run's published files."""

    @property
    def where(self) -> str:
        """The folder or address, for people."""
        ...

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        """The file's bytes, or ``length`` of them from ``start`` (fewer at its end).

        Raises MissingError when it is not there, ArtefactError when it cannot be read, ProofError for a
        name that no run publishes.
        """
        ...

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        ...

    def names(self) -> Iterator[str] | None:
        """Everything that is there, published or not; None where there is no list."""
        ...


class Folder:
    """A coordinator's run folder, or a copy of what it publishes."""

    def __init__(self, folder: Path) -> None:
        """Raises ArtefactError when there is no such folder."""
        if not folder.is_dir():
            raise ArtefactError(f"{folder} is no folder", "name a run's folder, or its address")
        self._folder, self.where = folder.resolve(), str(folder)

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        """As :meth:`Source.read`; a link that leaves the folder is refused."""
        path = self._path(name)
        try:
            with open_regular(path) as file:
                file.seek(start)
                return _bounded(file.read, name, length)
        except (FileNotFoundError, NotADirectoryError):
            raise MissingError(f"{name} is not there", REMEDY) from None
        except OSError as error:
            raise ArtefactError(f"{name} cannot be read: {error.strerror}", REMEDY) from None

    def exists(self, name: str) -> bool:
        """As :meth:`Source.exists`."""
        try:
            return self._path(name).is_file()
        except OSError as error:
            raise ArtefactError(f"{name} cannot be read: {error.strerror}", REMEDY) from None

    def names(self) -> Iterator[str]:
        """As :meth:`Source.names`: files, links to wherever, and folders that cannot be looked into."""
        waiting = [self._folder]
        while waiting:
            folder = waiting.pop()
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        path = Path(entry.path)
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(path)
                        else:
                            yield path.relative_to(self._folder).as_posix()
            except OSError:
                yield f"{folder.relative_to(self._folder).as_posix()}/"

    def _path(self, name: str) -> Path:
        check_name(name)
        path = self._folder / name
        try:
            inside = path.resolve().is_relative_to(self._folder)
        except RuntimeError:  # links that lead to each other
            inside = False
        if not inside:
            raise ProofError(f"{name} leads out of the run's folder", "do not trust this copy")
        return path


class Web:
    """The same files below an http or https address."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """Raises ArtefactError for another kind of address."""
        if fault := web_fault(url):
            raise ArtefactError(f"{shown_address(url)} {fault}", "give http://… or https://…")
        self.where, self._base, self._timeout_s = url, url.rstrip("/"), timeout_s

    def names(self) -> None:
        """As :meth:`Source.names`: a server gives none."""

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        """As :meth:`Source.read`; a server that knows no ranges is asked for the whole."""
        check_name(name)
        until, pages = time.monotonic() + LONGEST_S, name.endswith(".html")
        try:
            with opened(
                f"{self._base}/{name}",
                offset=start,
                length=length,
                deadline=until,
                silence_s=self._timeout_s,
                pages=pages,
            ) as reader:
                return _bounded(reader.at_most, name, length)
        except PageError as error:
            raise ArtefactError(str(error), WEB_PAGE) from None
        except CutError as error:
            if error.status in (404, 410):
                raise MissingError(f"{name} is not there", REMEDY) from None
            if error.status:
                raise ArtefactError(f"{name}: the server answers {error.status}", REMEDY) from None
            raise ArtefactError(f"{name} cannot be fetched: {error}", REMEDY) from None

    def exists(self, name: str) -> bool:
        """As :meth:`Source.exists`."""
        try:
            self.read(name, length=1)
        except MissingError:
            return False
        return True


def open_source(text: str) -> Source:
    """A source by what a person typed: an address with ``://``, else a folder."""
    return Web(text) if "://" in text else Folder(Path(text))


def check_name(name: str) -> None:
    """It is the name of a published file, or of one that is compared. Raises ProofError."""
    if not (PUBLISHED.fullmatch(name) or OWN.fullmatch(name)):
        raise ProofError(f"{name[:120]!r} is no file that a run publishes", "do not trust this log")


def _bounded(read: Callable[[int], bytes], name: str, length: int | None) -> bytes:
    most = next((most for kind, most in MOST_OF if kind.fullmatch(name)), MOST_BYTES)
    data = read(most + 1 if length is None else length)
    if len(data) > most:
        raise ArtefactError(f"{name} has more than {most} bytes", REMEDY)
    return data
