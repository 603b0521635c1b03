"""Where a site keeps its part in an attempt of secure aggregation between two messages. (P-6.10)

Flower's node state ends with the SuperNode's process: a site that was killed has lost its attempt. A file
of its own survives that. Either way the session after a request is kept before the reply leaves:
what was killed in between answers the same request with the same reply, and refuses to mask again, so
that no two vectors leave under one mask. A file put back from a backup would undo this; a site that
restores a backup deletes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from client.private import private_bytes, private_folder, write_private
from protocol import wire
from protocol.documents import OddError, json_as
from protocol.errors import MachineError
from protocol.secagg.session import Session
from storage.locks import locked

if TYPE_CHECKING:
    from flwr.app import Context

MOST_SESSION = 2**28  # bytes: what others have sealed for this site, and the adverts


class Kept(Protocol):
    """One plan's session."""

    def load(self) -> Session | None:
        """What was kept last."""
        ...

    def keep(self, session: Session) -> None:
        """Keep ``session`` in its place; it is safe when this returns."""
        ...


@contextmanager
def session_of(context: Context, folder: Path | None, plan: str) -> Iterator[Kept]:
    """The session of the plan with digest ``plan``, in ``folder``, or in the node's state without one.

    Of two processes with one folder the second waits: both would go on from the same session.
    """
    if folder is None:
        yield StateSession(context)
        return
    path = private_folder(folder) / f"{plan[:32]}.json"
    with locked(path.with_name(path.name + ".lock")):
        yield FileSession(path)


class StateSession:
    """In Flower's node state, which Flower keeps together with the reply."""

    def __init__(self, context: Context) -> None:
        self._state = context.state

    def load(self) -> Session | None:
        """What the state holds."""
        held = self._state.get(wire.SECAGG)
        return None if held is None else _session(str(held["session"]))

    def keep(self, session: Session) -> None:
        """Put it into the state."""
        from flwr.app import ConfigRecord

        self._state[wire.SECAGG] = ConfigRecord({"session": session.model_dump_json()})


class FileSession:
    """In a file that its owner alone can read, replaced whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Session | None:
        """What the file holds. Raises MachineError for a damaged one: forgetting is for its owner."""
        data = private_bytes(self._path, most=MOST_SESSION)
        try:
            return None if data is None else _session(data)
        except OddError:  # its text would show secrets
            raise MachineError(
                f"{self._path} is not a session",
                "delete it; this site then misses the attempt that is running",
            ) from None

    def keep(self, session: Session) -> None:
        """Replace the file. Raises MachineError; then nothing may be answered."""
        write_private(self._path, session.model_dump_json().encode())


def _session(data: str | bytes) -> Session:
    """Raises OddError. A share is a number of the field, below 2^255."""
    return json_as(Session, data, most=MOST_SESSION, digits=80)
