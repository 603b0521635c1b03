"""The ClientApp's side of the trainer: find it, start it when there is none, hand it a request.

Neither an engine nor the base is loaded here.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.frames import Header, Refused, State, Stop, Train, Trained, receive, send
from client.job import Job
from client.trainer import beside, check_path, code_version, verify_peer
from protocol.errors import FedgeError, MachineError
from protocol.exchange import Contribution
from protocol.layout import Vector
from protocol.wire import Instruction, to_record
from storage.locks import locked

SILENCE = 60.0  # seconds without a sign of life; a trainer gives one every two
START = 60.0  # seconds until a trainer that was started must listen
IDLE = 3600.0  # seconds after which a trainer that was started here ends by itself
LOG_BYTES = 2**20  # of a log; a larger one is begun anew


def ask(path: Path, job: Job, instruction: Instruction, adapter: Vector) -> Contribution:
    """Let the trainer at ``path`` do ``job``; one is started when none serves.

    Raises what training raises there, MachineError when the trainer cannot be started, stops during the
    request, or is silent. A failed request has had no effect: it may be asked again.
    """
    train = Train(
        client=job.client,
        plan=str(job.plan.absolute()),
        base=str(job.base.absolute()),
        data=str(job.data.absolute()),
        programs=str(job.programs.absolute()) if job.programs else "",
        threads=job.threads,
        instruction=to_record(instruction),
    )
    with _connected(path) as connection:
        header, update = _exchanged(path, connection, train, adapter)
    if isinstance(header, Refused):
        raise header.raised()
    if not isinstance(header, Trained):
        raise _lost(path, "answered with something else")
    return Contribution(update=update, weight=header.weight, metrics=header.metrics)


def state(path: Path) -> State | None:
    """Who serves ``path``; None when nobody does."""
    if (reached := _reached(path)) is None:
        return None
    connection, greeting = reached
    connection.close()
    return greeting


def stop(path: Path, *, patience: float = 30.0) -> State | None:
    """Ask the trainer to end and wait until it has; None when there was none. Raises MachineError."""
    if (reached := _reached(path)) is None:
        return None
    connection, greeting = reached
    with connection:
        try:
            send(connection, Stop())
            receive(connection)
        except (OSError, EOFError):
            pass  # it ended meanwhile
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with locked(beside(path, "lock"), seconds=0) as free:
            if free:
                return greeting
        time.sleep(0.05)
    raise MachineError(f"the trainer (process {greeting.pid}) does not end", "kill it")


def start(path: Path, *, idle: float | None = None) -> State:
    """The trainer that serves ``path``: the one that is there, or a new one. Raises MachineError."""
    check_path(path)
    with locked(beside(path, "start")):  # of two that find none, one starts it
        if (greeting := state(path)) is not None:
            return greeting
        log = beside(path, "log")
        process = _spawned(path, log, IDLE if idle is None else idle)
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            if (greeting := state(path)) is not None:
                return greeting
            if (code := process.poll()) is not None:
                raise MachineError(f"the trainer ended with code {code} at its start", f"see {log}")
            time.sleep(0.05)
        process.kill()
        process.wait()
        raise MachineError(f"the trainer does not listen after {START:g} s", f"see {log}")


def _spawned(path: Path, log: Path, idle: float) -> subprocess.Popen[bytes]:
    """A process of its own session: it outlives the one that handles this message."""
    root = str(Path(__file__).resolve().parent.parent)
    before = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": f"{root}:{before}" if before else root}
    try:
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.unlink()
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise MachineError(f"{log} cannot be written: {error.strerror}", "check the disk") from None
    try:
        return subprocess.Popen(  # noqa: S603 this very program
            [sys.executable, "-m", "fedge", "client", "trainer", str(path), "--idle", str(idle)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=path.parent,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise MachineError(
            f"the trainer cannot be started: {error.strerror}", "check this machine's memory"
        ) from None
    finally:
        os.close(output)


@contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    """A connection to a trainer that runs this very code."""
    path = path.absolute()
    check_path(path)
    reached = _reached(path)
    if reached is not None and reached[1].code != code_version():
        reached[0].close()
        stop(path)
        reached = None
    if reached is None:
        start(path)
        reached = _reached(path)
    if reached is None:
        raise _lost(path, "ended right after its start")
    connection, _ = reached
    with connection:
        yield connection


def _reached(path: Path) -> tuple[socket.socket, State] | None:
    """A connection and its greeting; None when nobody listens. Raises MachineError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(SILENCE)
    try:
        connection.connect(str(path))
        verify_peer(connection)
        frame = receive(connection)
        if frame is None:  # it is ending
            connection.close()
            return None
        if not isinstance(frame[0], State):
            raise _lost(path, "greets with something else")
        return connection, frame[0]
    except (FileNotFoundError, ConnectionError, EOFError):
        connection.close()
        return None
    except TimeoutError:
        connection.close()
        raise _lost(path, "accepts, and says nothing") from None
    except OSError as error:
        connection.close()
        raise MachineError(
            f"{path} cannot be reached: {error.strerror}", "check the path"
        ) from None
    except FedgeError:
        connection.close()
        raise


def _exchanged(
    path: Path, connection: socket.socket, train: Train, adapter: Vector
) -> tuple[Header, Vector]:
    try:
        send(connection, train, adapter)
        while (frame := receive(connection)) is not None:
            if not isinstance(frame[0], State):  # a sign of life
                return frame
    except TimeoutError:
        raise _lost(path, f"was silent for {SILENCE:g} s") from None
    except (OSError, EOFError):
        pass
    raise _lost(path, "stopped during the request")


def _lost(path: Path, what: str) -> MachineError:
    return MachineError(
        f"the trainer {what}", f"the next request starts it again; see {beside(path, 'log')}"
    )
