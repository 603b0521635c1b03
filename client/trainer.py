"""A site's trainer: one process that keeps the engine, the base and the encoded rows between messages.

Flower starts a process for every message; this one stays. It holds nothing that a crash must not
lose: an optimiser begins anew every round, keys and sessions are the ClientApp's. Requests come over a
Unix socket (mode 0600, in a folder of mode 0700) from processes of the same user only. One request is
trained at a time, always by the main thread; others wait.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import queue
import signal
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path

from client.frames import Header, Refused, State, Stop, Train, Trained, receive, send
from client.job import Job, contribution
from client.private import private_folder
from protocol.errors import FedgeError, MachineError
from protocol.layout import Vector
from protocol.wire import Instruction, from_record
from storage.locks import locked

log = logging.getLogger("fedge.trainer")

BEAT = 2.0  # seconds between signs of life while a request is worked on
PATIENCE = 60.0  # seconds of silence within a frame, or of somebody who does not read
CONNECTIONS = 16  # open at a time
HANDOVER = 5.0  # seconds that the one before may take to end
LONGEST_PATH = 100  # bytes of a socket's path; systems allow 104 to 108


class GivenUpError(Exception):
    """The request need not be finished: its asker has gone, or the trainer is to stop."""


class Request:
    """A request of one connection, on its way to the main thread and back."""

    def __init__(self, train: Train, adapter: Vector) -> None:
        self.train, self.adapter = train, adapter
        self.abandoned = False
        self.done = threading.Event()
        self.reply: Header = Refused.of(_stopped())
        self.update: Vector | None = None

    def answer(self, reply: Header, update: Vector | None = None) -> None:
        """Hand the reply to the connection's thread."""
        self.reply, self.update = reply, update
        self.done.set()


class Trainer:
    """Serves ``path`` until it is told to stop, or nobody has asked for ``idle`` seconds (0: never).

    One that never ends by itself is a supervisor's: it waits while another one, which a message has
    started in its absence, still serves.
    """

    def __init__(self, path: Path, *, idle: float = 0.0) -> None:
        self._path, self._idle = path, idle
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._stopping = False
        self._code = code_version()
        self._served = 0
        self._busy = False
        self._connections = threading.Semaphore(CONNECTIONS)
        self._answering: set[threading.Thread] = set()

    def serve(self) -> None:
        """Bind, greet, train. Raises MachineError when another trainer serves the same path."""
        check_path(self._path)
        patience = HANDOVER if self._idle else math.inf
        with locked(beside(self._path, "lock"), seconds=patience) as free:
            if not free:
                raise MachineError(
                    f"{self._path}: another trainer serves it already", "use that one, or stop it"
                )
            with suppress(FileNotFoundError):
                self._path.unlink()  # of one that was killed
            listener = _bound(self._path)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self.stop())
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            try:
                self._work()
            finally:
                self._stopping = True
                listener.close()
                self._path.unlink(missing_ok=True)
                self._refuse_the_rest()

    def stop(self) -> None:
        """End soon: a running request is given up at its next step. Safe in a signal handler."""
        self._stopping = True
        self._requests.put(None)

    # -- the main thread ------------------------------------------------------------------------

    def _work(self) -> None:
        _warm()
        while not self._stopping:
            try:
                request = self._requests.get(timeout=self._idle or None)
            except queue.Empty:
                log.info("nobody has asked for %.0f s: ending", self._idle)
                return
            if request is not None and not request.abandoned:
                self._busy = True
                request.answer(*self._trained(request))
                self._busy = False
                self._served += 1

    def _trained(self, request: Request) -> tuple[Header, Vector | None]:
        def on_step(_step: int) -> None:
            if self._stopping or request.abandoned:
                raise GivenUpError

        train = request.train
        job = Job(
            client=train.client,
            plan=Path(train.plan),
            base=Path(train.base),
            data=Path(train.data),
            threads=train.threads,
            programs=Path(train.programs) if train.programs else None,
        )
        try:
            instruction = from_record(Instruction, train.instruction)
            trained = contribution(job, instruction, request.adapter, on_step=on_step)
        except GivenUpError:
            return Refused.of(_stopped()), None
        except FedgeError as error:
            log.warning("refused: %s", type(error).__name__)
            return Refused.of(error), None
        except ModuleNotFoundError as error:
            return Refused.of(_missing(error)), None
        except Exception as error:  # the process stays: the next request may be a better one
            log.exception("unexpected failure of the trainer")
            return Refused.of(_unexpected(error)), None
        log.info("round %s trained", instruction.round)
        return Trained(weight=trained.weight, metrics=dict(trained.metrics)), trained.update

    def _refuse_the_rest(self) -> None:
        with suppress(queue.Empty):
            while True:
                if (request := self._requests.get_nowait()) is not None:
                    request.answer(Refused.of(_stopped()))
        for thread in list(self._answering):  # the last replies leave
            thread.join(timeout=1.0)

    # -- connections ----------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # closed: the process ends
            if self._stopping or not self._connections.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(PATIENCE)
                verify_peer(connection)
                send(connection, self._state())
                while (frame := receive(connection)) is not None:
                    if not self._answer(connection, *frame):
                        return
        except FedgeError as error:
            log.warning("a connection was closed: %s", error.cause)
        except (OSError, EOFError):
            pass  # the asker has gone
        finally:
            self._connections.release()

    def _answer(self, connection: socket.socket, header: Header, body: Vector) -> bool:
        """Whether the connection may go on."""
        if isinstance(header, Stop):
            try:
                send(connection, self._state())
            finally:
                self.stop()
            return False
        if not isinstance(header, Train):
            return False
        request = Request(header, body)
        self._answering.add(threading.current_thread())
        try:
            self._requests.put(request)
            if self._stopping:  # put after the rest was refused
                request.answer(Refused.of(_stopped()))
            while not request.done.wait(BEAT):
                send(connection, self._state())
            send(connection, request.reply, request.update)
        except OSError:
            request.abandoned = True
            raise
        finally:
            self._answering.discard(threading.current_thread())
        return True

    def _state(self) -> State:
        return State(pid=os.getpid(), code=self._code, served=self._served, busy=self._busy)


def check_path(path: Path) -> None:
    """Its folder is private and the path short enough. Raises MachineError."""
    private_folder(path.parent)
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise MachineError(
            f"{path}: more than the {LONGEST_PATH} bytes of a socket's path", "name a shorter one"
        )


def beside(path: Path, kind: str) -> Path:
    """A file that belongs to the socket ``path``."""
    return path.with_name(f"{path.name}.{kind}")


def verify_peer(connection: socket.socket) -> None:
    """The other process is of this user. Raises MachineError; elsewhere the folder's mode has to do."""
    if not hasattr(socket, "SO_PEERCRED"):
        return
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    _pid, user, _group = struct.unpack("3i", credentials)
    if user != os.geteuid():
        raise MachineError(
            "the process at the other end of the trainer's socket is another user's",
            "start client and trainer as one user",
        )


def code_version() -> str:
    """Another one after an upgrade: then a trainer that is still running is replaced."""
    root = Path(__file__).resolve().parent.parent
    hasher = hashlib.sha256()
    for package in ("client", "base_model", "protocol", "storage"):
        for path in sorted((root / package).rglob("*.py")):
            state = path.stat()
            hasher.update(
                f"{path.relative_to(root)} {state.st_size} {state.st_mtime_ns}\n".encode()
            )
    return hasher.hexdigest()


def _bound(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(CONNECTIONS)
    except OSError as error:
        listener.close()
        raise MachineError(f"{path} cannot be bound: {error.strerror}", "name another") from None
    return listener


def _warm() -> None:
    """Import what training needs before the first request; its lack is the request's answer."""
    try:
        import base_model.programs.folder  # noqa: F401
        import client.engine.onnx_engine
        import client.worker  # noqa: F401
    except ModuleNotFoundError as error:
        log.warning("the package %s is not installed", error.name)


def _stopped() -> MachineError:
    return MachineError("the trainer was stopped during the request", "ask again")


def _missing(error: ModuleNotFoundError) -> MachineError:
    return MachineError(
        f"the package `{error.name}` is not installed", "pip install -c constraints.txt '.[client]'"
    )


def _unexpected(error: Exception) -> MachineError:
    return MachineError(
        f"the trainer failed unexpectedly ({type(error).__name__})",
        "see the trainer's log; it may be a bug of fedge",
    )
