"""``kill -9`` between any two steps of a round's commit leaves a log and a state that verify and resume.

A forked process runs the real coordinator and dies before its n-th rename, write to disk or removal of
that commit; an auditor then looks at what lies there, and the run goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from protocol.errors import ArtefactError
from server.log import RunLog
from server.store import RunStore
from tests.unit.audit.runs import Sites, make_run, small_plan

STEPS = ("fsync", "rename", "replace", "unlink", "mkdir", "rmdir")


class Deadly:
    """Counts the steps of the commit of one round, and kills this process before the n-th."""

    def __init__(self, kill_at: int | None, number: int) -> None:
        self.kill_at, self.number = kill_at, number
        self.steps, self.active = 0, False

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in STEPS:
            patch.setattr(os, name, self._counting(getattr(os, name)))
        publish, take = RunStore.publish, RunLog.take

        def publishing(store: RunStore, number: int, *rest: Any) -> Path:
            self.active = number == self.number
            return publish(store, number, *rest)

        def taking(log: RunLog, path: Path) -> None:
            take(log, path)
            self.active = False

        patch.setattr(RunStore, "publish", publishing)
        patch.setattr(RunLog, "take", taking)

    def _counting(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **named: Any) -> Any:
            if self.active:
                if self.steps == self.kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                self.steps += 1
            return real(*args, **named)

        return counted


def killed_run(folder: Path, sites: Sites, kill_at: int) -> bool:
    """Whether a process that runs the plan dies before step ``kill_at`` of round 1's commit."""
    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as patch:
            Deadly(kill_at, 1).install(patch)
            make_run(folder, sites=sites)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def steps_of_a_commit(folder: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        counter = Deadly(None, 1)
        counter.install(patch)
        make_run(folder)
    return counter.steps


def adapter_of(run: Path) -> str:
    record = json.loads((run / "rounds/0002/record.json").read_text())
    return str(record["adapter_out"])


def check(folder: Path, sites: Sites, kill_at: int, expected: str) -> None:
    assert killed_run(folder, sites, kill_at), kill_at
    rounds = len(list((folder / "rounds").glob("[0-9][0-9][0-9][0-9]")))
    left = audit(Folder(folder), Trust())
    assert (left.faults, left.failed) == ((), False), kill_at
    assert [one.verdict for one in left.rounds] == ["ok"] * rounds, kill_at
    make_run(folder, sites=sites)
    whole = audit(Folder(folder), Trust())
    assert (whole.faults, [one.verdict for one in whole.rounds]) == ((), ["ok"] * 3), kill_at
    assert adapter_of(folder) == expected
    hidden = [path.name for path in (folder / "rounds").glob(".*")]
    assert hidden == [], kill_at


def crash_everywhere(tmp_path: Path, stride: int) -> None:
    count = steps_of_a_commit(tmp_path / "whole")
    assert count > 20
    expected = adapter_of(tmp_path / "whole")
    sites = Sites(*small_plan(), tmp_path / "sites", 6)
    for kill_at in range(0, count, stride):
        folder = tmp_path / f"run{kill_at}"
        check(folder, sites, kill_at, expected)
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "sites")
        sites = Sites(*small_plan(), tmp_path / "sites", 6)


def test_a_kill_between_steps_of_a_commit(tmp_path: Path) -> None:
    crash_everywhere(tmp_path, stride=4)


@pytest.mark.slow
def test_a_kill_between_any_two_steps_of_a_commit(tmp_path: Path) -> None:
    crash_everywhere(tmp_path, stride=1)


def test_a_damaged_tile_is_noticed_by_the_coordinator(tmp_path: Path) -> None:
    sites = Sites(*small_plan(), tmp_path / "sites", 6)
    run = make_run(tmp_path / "run", sites=sites)
    (tile,) = sorted((run / "log/tile/entries").rglob("*.p/*"))[-1:]
    data = bytearray(tile.read_bytes())
    data[40] ^= 1
    tile.write_bytes(data)
    with pytest.raises(ArtefactError):
        make_run(run, sites=sites)
