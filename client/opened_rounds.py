"""Which rounds' sums this client has helped to open, in a file: whatever restarts, or is started anew.

Two sums of one round show the difference of their members' updates. Flower's node state ends with a
Flower run, and a coordinator starts as many of those as it likes; this memory is the site's own. (P-6.10)
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from protocol.errors import MachineError
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
        self.path = path

    def last(self, plan: str) -> Revealed | None:
        """The plan's last line. Raises MachineError for a damaged file."""
        try:
            lines = self.path.read_text("utf-8").splitlines()
            found = [line for line in map(_Line.model_validate_json, lines) if line.plan == plan]
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise self._unusable("read", error) from None
        return found[-1].revealed if found else None

    def note(self, plan: str, instruction: Instruction, revealed: Revealed) -> None:
        """Check and append as one: Flower runs side by side share the file."""
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._unusable("written", error) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            check_round(self.last(plan), instruction, revealed.alive)
            os.write(file, (_Line(plan=plan, revealed=revealed).model_dump_json() + "\n").encode())
            os.fsync(file)
        except OSError as error:
            raise self._unusable("written", error) from None
        finally:
            os.close(file)

    def _unusable(self, verb: str, error: Exception) -> MachineError:
        return MachineError(
            f"{self.path}: the memory of opened rounds cannot be {verb} ({type(error).__name__})",
            "without it nothing is revealed; check the file and its folder",
        )
