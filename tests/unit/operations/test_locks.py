"""Locks of commands and supervisors: who looks disturbs nobody, who stops hits the right process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from operations.coordinator import make_coordinator
from operations.folders import free_port
from operations.overview import known_runs, note_run
from operations.service import stop_holder
from operations.site import Work, make_site, read_invitation
from protocol.errors import MachineError
from server.store import RunStore
from storage.locks import holder, is_held, locked
from tests.unit.operations.test_contact import now


def test_who_looks_disturbs_nobody(tmp_path: Path) -> None:
    """A look takes the lock for a moment; whoever starts in that moment starts all the same."""
    path, stop = tmp_path / ".lock", threading.Event()

    def look() -> None:
        while not stop.is_set():
            is_held(path)

    lookers = [threading.Thread(target=look) for _ in range(4)]
    for each in lookers:
        each.start()
    try:
        for _ in range(100):
            with locked(path):
                assert holder(path) == os.getpid()
            RunStore(tmp_path).close()
    finally:
        stop.set()
        for each in lookers:
            each.join()


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_number_of_another_machine_is_nobody_here(tmp_path: Path) -> None:
    """The folder is shared with a container; there it is process N, and here N is somebody else."""
    path = tmp_path / "supervisor.lock"
    innocent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with locked(path):
            path.write_text(f"{innocent.pid}\n")
            with pytest.raises(MachineError, match="of another machine or container"):
                stop_holder(path, patience_s=0.2)
            assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_commands_at_one_coordinator_take_turns(tmp_path: Path) -> None:
    ports = (free_port(), free_port(), free_port())
    coordinator = make_coordinator(
        tmp_path / "c", ["127.0.0.1"], name="t", ports=ports, address="127.0.0.1", now=now()
    )
    invitation = read_invitation(coordinator.folder / "invitation.json")
    names = [f"ward-{number}" for number in range(6)]
    requests = [
        (
            make_site(tmp_path / name, name, invitation, work=Work(), port=9100).folder
            / "request.json"
        )
        for name in names
    ]
    with ThreadPoolExecutor(8) as pool:
        admitted = [pool.submit(coordinator.admit, r.read_bytes(), source="r") for r in requests]
        looked = [pool.submit(coordinator.write_roster) for _ in range(6)]
        noted = [
            pool.submit(note_run, coordinator, tmp_path / name, name=name, planned=1, run=1)
            for name in names
        ]
        for each in (*admitted, *looked, *noted):
            each.result()
    assert [site.name for site in coordinator.roster().sites] == names
    assert all(f'"{name}"' in coordinator.roster_file.read_text() for name in names)
    assert sorted(run["name"] for run in known_runs(coordinator)) == names


def test_other_users_cannot_hold_a_runs_lock(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch(mode=0o644)  # as earlier versions left it
    store = RunStore(tmp_path)
    store.open_attempt(1, {})
    assert (tmp_path / ".lock").stat().st_mode & 0o077 == 0
    assert (tmp_path / "rounds" / ".0001.open").stat().st_mode & 0o077 == 0
    began = time.monotonic()
    with pytest.raises(Exception, match="in use by another coordinator"):
        RunStore(tmp_path)
    assert time.monotonic() - began < 5
    store.close()
