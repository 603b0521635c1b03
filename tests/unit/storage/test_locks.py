"""Locks: one holder, known by its number, gone with its process, out of strangers' reach."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from protocol.errors import MachineError
from storage.locks import holder, is_held, locked, take

ROOT = Path(__file__).resolve().parents[3]
HOLDS = """
import sys, time
from pathlib import Path
from storage.locks import take
held = take(Path(sys.argv[1]), seconds=0)
print("held" if held else "not free", flush=True)
time.sleep(600)
"""


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(f"{2**40}\n")  # of one that was killed
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert holder(path) == other.pid
        assert take(path, seconds=0) is None
        with locked(path, seconds=0) as free:
            assert not free
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        assert not is_held(path)  # its number still stands there
        with locked(path) as free:
            assert free
            assert holder(path) == os.getpid()
        assert holder(path) is None
    finally:
        other.kill()
        other.wait()
        if other.stdout:
            other.stdout.close()


def test_one_process_holds_it_once(tmp_path: Path) -> None:
    held = take(tmp_path / "lock")
    assert held is not None
    assert take(tmp_path / "lock", seconds=0) is None
    with ThreadPoolExecutor(1) as pool:
        pool.submit(held.release).result()  # whoever ends the run does it
    with locked(tmp_path / "lock", seconds=0) as free:
        assert free


def test_who_only_looks_leaves_nothing(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "lock").write_text("1\n")
    assert not is_held(tmp_path / "lock")  # a number alone holds nothing
    with (tmp_path / "lock").open() as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        assert not is_held(tmp_path / "lock")  # nor does who looks at the same moment


def test_only_its_owner_can_open_it(tmp_path: Path) -> None:
    """Whoever can read a lock file can hold its lock."""
    before = os.umask(0)
    try:
        (tmp_path / "old").touch(mode=0o666)
        for name in ("old", "new"):
            with locked(tmp_path / name):
                assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "lock").symlink_to(victim)
    with pytest.raises(MachineError, match="cannot be locked"), locked(tmp_path / "lock"):
        pass
    assert victim.read_text() == "mine"
