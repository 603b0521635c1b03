"""Processes that are kept running: started again when they end, stopped together, never left behind."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from operations.logs import JsonLog, Redactor
from protocol.documents import parse_json
from protocol.errors import MachineError
from storage.locks import LOOK_S, holder, locked
from storage.whole import write_whole

STATUS, LOCK, LOG = "status.json", "supervisor.lock", "log.jsonl"
FIRST_WAIT_S, LONGEST_WAIT_S, SETTLED_S = 0.5, 30.0, 30.0
TICK_S, PATIENCE_S = 0.1, 8.0
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Component:
    """A process to keep: its command, an absolute path first, and its whole environment.

    When it ends, those named in ``takes_along`` are ended and started again with it.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    takes_along: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Process:
    """A supervised process; without a pid it is waiting to be started again."""

    name: str
    pid: int | None
    restarts: int
    last_exit: int | None


@dataclass
class _Kept:
    """A component with its present process, if any."""

    component: Component
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float = 0.0
    failures: int = 0
    restarts: int = 0
    last_exit: int | None = None
    taken: bool = False  # ended because of another one


class Supervisor:
    """Keeps ``components`` running in ``folder`` until told to stop.

    ``folder`` gets the lock, the log and ``status.json``; ``work`` is the neutral folder in which the
    processes run. ``chores`` are called about once a second, from the thread that runs.
    """

    def __init__(
        self,
        folder: Path,
        work: Path,
        components: Sequence[Component],
        log: JsonLog,
        chores: Sequence[Callable[[], None]] = (),
    ) -> None:
        self._folder, self._work, self._log, self._chores = folder, work, log, chores
        self._kept = [_Kept(component) for component in components]
        self._stopping = False
        self._written = ""

    def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises MachineError when another supervisor has this folder."""
        with locked(self._folder / LOCK, seconds=LOOK_S) as free:
            if not free:
                raise MachineError(
                    f"{self._folder}: it runs already (process {holder(self._folder / LOCK)})",
                    "stop it first",
                )
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._told)
            self._work.mkdir(parents=True, exist_ok=True)
            self._log.write("supervisor", "INFO", "started", pid=os.getpid())
            try:
                self._keep()
            finally:
                self._end()
                self._log.write("supervisor", "INFO", "stopped")

    def _told(self, number: int, frame: object) -> None:
        self._stopping = True

    def _keep(self) -> None:
        next_chores = 0.0
        while not self._stopping:
            now = time.monotonic()
            for kept in self._kept:
                self._look_after(kept, now)
            self._write_status()
            if now >= next_chores:
                for chore in self._chores:
                    self._do(chore)
                next_chores = time.monotonic() + 1.0
            time.sleep(TICK_S)

    def _do(self, chore: Callable[[], None]) -> None:
        try:
            chore()
        except Exception as error:  # a chore that fails must not end what is supervised
            self._log.write("supervisor", "ERROR", f"a chore failed: {type(error).__name__}")

    def _look_after(self, kept: _Kept, now: float) -> None:
        process = kept.process
        if process is None:
            if now >= kept.due:
                self._start(kept, now)
            return
        if (code := process.poll()) is None:
            if now - kept.started > SETTLED_S:
                kept.failures = 0
            return
        _kill_group(process)  # what it started goes with it
        kept.process, kept.last_exit = None, code
        kept.restarts += 1
        if kept.taken:
            kept.taken, kept.due = False, now
            return
        wait = min(FIRST_WAIT_S * 2**kept.failures, LONGEST_WAIT_S)
        kept.failures, kept.due = kept.failures + 1, now + wait
        self._log.write(kept.component.name, "WARNING", "ended", code=code, again_in_s=wait)
        self._take_along(kept.component)

    def _take_along(self, ended: Component) -> None:
        for kept in self._kept:
            if kept.component.name in ended.takes_along and kept.process and not kept.taken:
                kept.taken = True
                _kill_group(kept.process)

    def _start(self, kept: _Kept, now: float) -> None:
        component = kept.component
        try:
            process = subprocess.Popen(  # noqa: S603 - commands that we made
                component.command,
                cwd=self._work,
                env=dict(component.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            kept.failures, kept.due = kept.failures + 1, now + LONGEST_WAIT_S
            self._log.write(component.name, "ERROR", f"cannot be started: {error.strerror}")
            return
        kept.process, kept.started = process, now
        self._log.write(component.name, "INFO", "started", pid=process.pid)
        assert process.stdout is not None
        reader = threading.Thread(
            target=self._copy, args=(component.name, process.stdout), daemon=True
        )
        reader.start()

    def _copy(self, name: str, stream: IO[bytes]) -> None:
        redactor = Redactor()
        for raw in stream:
            if found := redactor.line(raw.decode("utf-8", "replace")):
                self._log.write(name, *found)

    def _write_status(self) -> None:
        status = {
            "pid": os.getpid(),
            "components": {
                kept.component.name: {
                    "pid": kept.process.pid if kept.process else None,
                    "restarts": kept.restarts,
                    "last_exit": kept.last_exit,
                }
                for kept in self._kept
            },
        }
        if (text := json.dumps(status, indent=1) + "\n") == self._written:
            return
        try:
            write_whole(self._folder / STATUS, text.encode())
            self._written = text
        except OSError:  # a full disk: the processes matter more
            return

    def _end(self) -> None:
        """Ask all, wait, then insist; in the opposite order of their start."""
        alive = [kept.process for kept in reversed(self._kept) if kept.process]
        for process in alive:
            process.terminate()
        until = time.monotonic() + PATIENCE_S
        for process in alive:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            _kill_group(process)
            process.wait()
        (self._folder / STATUS).unlink(missing_ok=True)


def processes_of(state: Path) -> list[Process]:
    """What the supervisor with this state folder keeps; nothing when it does not run."""
    if holder(state / LOCK) is None:
        return []
    try:
        status = parse_json((state / STATUS).read_bytes())
    except (OSError, ValueError):
        return []
    return [Process(name=name, **entry) for name, entry in status["components"].items()]


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


_LIBC = _libc()


def _die_with_parent() -> None:
    """In the child: end when the supervisor ends, however that was. Linux only."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
