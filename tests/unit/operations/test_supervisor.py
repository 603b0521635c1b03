"""The supervisor with real processes: what ends comes back, what is stopped leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from operations.service import stop_holder
from storage.locks import holder, is_held

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from operations.logs import JsonLog
from operations.supervisor import Component, Supervisor
folder = Path(sys.argv[1])
child = "import subprocess,sys,time;subprocess.Popen([sys.executable,'-c','import time;time.sleep(600)']);print('hello',flush=True);time.sleep(600)"
short = "raise SystemExit(3)"
parts = [
    Component(name="a", command=[sys.executable, "-c", child], environment=os.environ, takes_along=("b",)),
    Component(name="b", command=[sys.executable, "-c", child], environment=os.environ, takes_along=("a",)),
    Component(name="short", command=[sys.executable, "-c", short], environment=os.environ),
    Component(name="absent", command=[str(folder / "nothing")], environment=os.environ),
]
Supervisor(folder, folder / "work", parts, JsonLog(folder / "log.jsonl", lambda: datetime.now(UTC))).run()
"""


def wait_for(what: Callable[[], object], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if what():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen")


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        wait_for(lambda: (status(tmp_path) or {}).get("b", {}).get("pid"))
        yield process
    finally:
        process.kill()
        process.wait()


def status(folder: Path) -> dict[str, dict[str, int]] | None:
    try:
        return json.loads((folder / "status.json").read_text())["components"]
    except (OSError, ValueError):
        return None


def processes_in(folder: Path) -> list[int]:
    """Everything that works in the supervisor's neutral folder, children's children too."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            here = entry.name.isdecimal() and (entry / "cwd").resolve() == folder / "work"
            if here and (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_killed_comes_back_and_nothing_stays_behind(
    supervisor: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    before = status(tmp_path)
    assert before is not None
    wait_for(lambda: len(processes_in(tmp_path)) == 4)
    os.kill(before["a"]["pid"], signal.SIGKILL)
    killed_at = time.monotonic()

    def back() -> bool:
        now = status(tmp_path) or {}
        pids = [now.get(name, {}).get("pid") for name in "ab"]
        return all(pids) and pids[0] != before["a"]["pid"] and pids[1] != before["b"]["pid"]

    wait_for(back)
    assert time.monotonic() - killed_at < 10
    wait_for(lambda: len(processes_in(tmp_path)) == 4)  # and the first ones' children are gone
    after = status(tmp_path)
    assert after is not None
    assert (after["a"]["restarts"], after["a"]["last_exit"]) == (1, -signal.SIGKILL)
    assert after["short"]["last_exit"] == 3
    assert holder(tmp_path / "supervisor.lock") == supervisor.pid
    second = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert second.returncode != 0
    assert f"it runs already (process {supervisor.pid})" in second.stderr
    assert stop_holder(tmp_path / "supervisor.lock", patience_s=15)
    assert supervisor.wait(5) == 0
    wait_for(lambda: not processes_in(tmp_path))
    assert status(tmp_path) is None
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"hello", "started", "stopped"} <= {line["message"] for line in lines}
    assert any("cannot be started" in line["message"] for line in lines)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
def test_what_it_keeps_ends_with_a_supervisor_that_is_killed(
    supervisor: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    kept = [entry["pid"] for name, entry in (status(tmp_path) or {}).items() if name in "ab"]
    supervisor.kill()
    supervisor.wait()
    wait_for(lambda: not set(kept) & set(processes_in(tmp_path)))
    assert not is_held(tmp_path / "supervisor.lock")
    for left in processes_in(tmp_path):  # children's children look after themselves; not these
        os.kill(left, signal.SIGKILL)


def test_nobody_to_stop(tmp_path: Path) -> None:
    assert not stop_holder(tmp_path / "supervisor.lock", patience_s=1)
    (tmp_path / "supervisor.lock").write_text("1\n")
    assert not is_held(tmp_path / "supervisor.lock")  # a number alone holds nothing
