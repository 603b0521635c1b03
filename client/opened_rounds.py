"""Which rounds' sums this client has helped to open, in a file: whatever restarts, or is started anew.

Two sums of one round show the difference of their members' updates. Flower's node state ends with a
Flower run, and a coordinator starts as many of those as it likes; this memory is the site's own. (P-6.10)
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from client.journal import Journal
from protocol.documents import OddError, json_as
from protocol.secagg.session import Revealed, check_round
from protocol.wire import Instruction


class OpenedRounds(Protocol):
    """The last round opened, by plan."""

    def last(self, plan: str) -> Revealed | None:
        """Of the plan with this digest."""
        ...

    def note(self, plan: str, instruction: Instruction, revealed: Revealed) -> None:
        """Keep ``revealed`` unless the round may not be opened; it is safe when this returns."""
        ...


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_bytes="hex", val_json_bytes="hex")

    plan: str
    revealed: Revealed


class FileOpenedRounds:
    """One JSON line per opened sum, only ever appended to, readable by its owner alone."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path, "the memory of opened rounds")

    def last(self, plan: str) -> Revealed | None:
        """The plan's last line. Raises MachineError for a damaged file."""
        try:
            lines = [json_as(_Line, line) for line in self._journal.text().splitlines()]
        except OddError as error:
            # Fail closed. A last line that a power cut tore was never followed by a share.
            raise self._journal.unusable("read", error) from None
        return next((line.revealed for line in reversed(lines) if line.plan == plan), None)

    def note(self, plan: str, instruction: Instruction, revealed: Revealed) -> None:
        """Check and append as one. Raises SecrecyError or MachineError."""
        self._journal.append(
            _Line(plan=plan, revealed=revealed).model_dump_json(),
            lambda: check_round(self.last(plan), instruction, revealed.alive),
        )
