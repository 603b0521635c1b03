"""A file of lines that only grows: what a site must not forget, whatever restarts or runs beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from protocol.errors import MachineError
from storage.regular import read_regular_text
from storage.whole import PRIVATE, appending

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
