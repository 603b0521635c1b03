"""A supervisor in the background: started, waited for, stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from operations.flower import ROOT
from operations.supervisor import LOCK
from protocol.errors import MachineError
from storage.locks import holder, is_held

START_LOG = "start.log"
READY_S, STOP_S = 60.0, 15.0


def start_in_background(
    arguments: Sequence[str], state: Path, *, ready: Callable[[], bool], log: Path
) -> None:
    """Run ``fedge ARGUMENTS`` detached and wait until ``ready``; what was started is ended otherwise.

    Raises MachineError when it ends early or is not ready within a minute.
    """
    if is_held(state / LOCK):
        raise MachineError(f"{state.parent}: it runs already", "stop it first")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with (state / START_LOG).open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-P", "-m", "fedge", *arguments],
            cwd=state,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        if process.poll() is not None:
            said = (state / START_LOG).read_text("utf-8", "replace").strip().splitlines()
            raise MachineError(
                f"it ended at once: {said[0] if said else process.returncode}", f"see {log}"
            )
        if is_held(state / LOCK) and ready():
            return
        time.sleep(0.2)
    process.terminate()
    process.wait()
    raise MachineError(f"it was not ready within {READY_S:.0f} s", f"see {log}")


def stop(state: Path) -> bool:
    """End the supervisor and with it what it keeps; whether there was one. Raises MachineError."""
    return stop_holder(state / LOCK, patience_s=STOP_S)


def verify_port_free(address: str, port: int) -> None:
    """Nobody listens there. Raises MachineError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise MachineError(
                f"{address}:{port} cannot be listened at: {error.strerror}",
                "choose another port in config.toml, or end the process that has it",
            ) from None


def stop_holder(path: Path, *, patience_s: float) -> bool:
    """Ask the holder to end and wait for it, then insist; whether there was one.

    Raises MachineError for one that does not end, or is none of this machine's processes: in another
    container, or behind a network file system, its number is somebody else's here.
    """
    process = holder(path)
    if not process:
        return False
    if not _has_open(process, path):
        raise MachineError(
            f"{path.parent}: it runs as process {process} of another machine or container",
            "stop it there",
        )
    for number, seconds in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.kill(process, number)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if holder(path) != process:
                return True
            time.sleep(0.05)
    raise MachineError(f"process {process} does not end", "end it by hand")


def _has_open(process: int, path: Path) -> bool:
    """Whether a process of this machine has the file open; where there is no /proc, its word is taken."""
    if not Path("/proc/self/fd").is_dir():
        return True
    try:
        wanted = path.stat()
        opened = list(Path(f"/proc/{process}/fd").iterdir())
    except OSError:
        return False
    for entry in opened:
        with suppress(OSError):
            if os.path.samestat(entry.stat(), wanted):
                return True
    return False
