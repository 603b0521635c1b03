"""A file of lines that only grows: what a site must not forget, whatever restarts or runs beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from protocol.errors import MachineError
from storage.regular import open_regular, read_regular_text
from storage.whole import PRIVATE, appending

MOST_JOURNAL = 2**30  # bytes: a line a round, for longer than any site lives
PIECE = 2**14  # bytes read at a time from the end
# Bytes of the end of what was read, by which a file is known: more than a line, for many end alike.
SEEN = 2**11


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a file was read: which file, when it was written, how many bytes, the last ones' SHA-256."""

    file: tuple[int, int] = (0, 0)
    written: int = 0
    size: int = 0
    last: bytes = b""

    def is_of(self, file: BinaryIO) -> bool:
        """Whether ``file`` has only grown since, as far as that shows without reading all of it."""
        status = os.fstat(file.fileno())
        if (status.st_dev, status.st_ino) != self.file or status.st_size < self.size:
            return False
        file.seek(max(0, self.size - SEEN))
        grown = status.st_size > self.size or status.st_mtime_ns == self.written
        return grown and sha256(file.read(min(self.size, SEEN))).digest() == self.last


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

    def since(self, mark: Mark) -> tuple[bool, list[str], Mark]:
        """Whether the file is the one that was read up to ``mark``, the lines behind it, and the mark after.

        Of another file, or one that was put back or edited, all lines. Raises MachineError.
        """
        try:
            with open_regular(self.path, most=MOST_JOURNAL) as file:
                known = mark.is_of(file)
                status = os.fstat(file.fileno())
                start = mark.size if known else 0
                file.seek(start)
                data = file.read()
                file.seek(max(0, start + len(data) - SEEN))
                last = sha256(file.read(min(start + len(data), SEEN))).digest()
                lines = data.decode("utf-8").splitlines()
        except FileNotFoundError:
            return mark == Mark(), [], Mark()
        except (OSError, UnicodeDecodeError) as error:
            raise self.unusable("read", error) from None
        file_id = (status.st_dev, status.st_ino)
        return known, lines, Mark(file_id, status.st_mtime_ns, start + len(data), last)

    def backwards(self) -> Iterator[str]:
        """The lines, the last one first; the file is read from its end, as far as it is asked for."""
        try:
            with open_regular(self.path, most=MOST_JOURNAL) as file:
                at, rest = file.seek(0, os.SEEK_END), b""
                if at and file.seek(at - 1) >= 0 and file.read(1) == b"\n":
                    at -= 1  # behind the last line that ends there is none
                while at:
                    start = max(0, at - PIECE)
                    file.seek(start)
                    rest, at = file.read(at - start) + rest, start
                    first, *whole = rest.split(b"\n")
                    yield from (line.decode("utf-8") for line in reversed(whole))
                    rest = first
                    if not at:
                        yield rest.decode("utf-8")
        except FileNotFoundError:
            return
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
        with self.alone() as append:
            line = (make() + "\n").encode()
            try:
                append(line)
            except OSError as error:
                raise self.unusable("written", error) from None

    @contextmanager
    def alone(self) -> Iterator[Callable[[bytes], None]]:
        """A call that appends, while nobody else does. Raises MachineError."""
        with ExitStack() as held:
            try:
                append = held.enter_context(appending(self.path, mode=PRIVATE))
            except OSError as error:
                raise self.unusable("written", error) from None
            yield append

    def unusable(self, verb: str, error: Exception) -> MachineError:
        """The error of a journal that cannot be used."""
        return MachineError(
            f"{self.path}: {self._what} cannot be {verb} ({type(error).__name__})",
            "without it nothing is revealed; check the file and its folder",
        )
