"""Which sums this client has helped to open, in a file: whatever restarts, or is started anew. (P-6.10)

Flower's node state ends with a Flower run, and a coordinator starts as many of those as it likes; this
memory is the site's own. A line is on disk before the shares of its sum leave.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from client.journal import Journal
from protocol.documents import OddError, json_as
from protocol.secagg.openings import Opening


class Openings(Protocol):
    """The sums opened, by plan."""

    def of(self, plan: str) -> list[Opening]:
        """Under the plan with this digest, oldest first."""
        ...

    def beside(self, plan: str, adapter: str) -> list[Line]:
        """Under other plans, of the incoming adapter with this digest."""
        ...

    def note(self, line: Line, allowed: Callable[[], None]) -> None:
        """Keep ``line`` unless ``allowed`` raises; it is safe when this returns."""
        ...


class Line(BaseModel):
    """A sum and the plan of its run; a line that does not say whether that has a start counts as yes."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="hex", val_json_bytes="hex"
    )

    plan: str
    start: bool = True
    opening: Opening


class FileOpenings:
    """One JSON line per opened sum, only ever appended to, readable by its owner alone."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path, "the memory of opened sums")

    def of(self, plan: str) -> list[Opening]:
        """The plan's lines. Raises MachineError for a damaged file."""
        return [line.opening for line in self._lines() if line.plan == plan]

    def beside(self, plan: str, adapter: str) -> list[Line]:
        """Other plans' lines. Raises MachineError for a damaged file."""
        return [
            line for line in self._lines() if line.plan != plan and line.opening.adapter == adapter
        ]

    def _lines(self) -> list[Line]:
        try:
            return [json_as(Line, line) for line in self._journal.text().splitlines()]
        except OddError as error:
            # Fail closed. A last line that a power cut tore was never followed by a share.
            raise self._journal.unusable("read", error) from None

    def note(self, line: Line, allowed: Callable[[], None]) -> None:
        """Check and append as one. Raises what ``allowed`` raises, or MachineError."""
        self._journal.append(line.model_dump_json(), allowed)
