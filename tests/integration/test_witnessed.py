"""Rounds whose alive sets real witnesses confirm: processes of their own, asked over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from protocol.errors import RoundError
from protocol.exchange import Phase
from protocol.transparency.note import KeyType, VerifierKey
from server.log import RunLog, open_log
from server.publishing import retire_vectors
from server.rounds import deal_groups
from server.store import RunStore
from server.witnessing import HttpWitness
from tests.unit.audit.runs import Sites, make_run, small_plan

LOG_NAME = "log.example/run"
START = "import typer; from audit.witness_commands import witness; typer.run(witness)"


class Process:
    """A running witness."""

    def __init__(self, folder: Path, name: str, log: str) -> None:
        options = ["--new", name, "--listen", "127.0.0.1:0", "--json", "--log", log]
        options += ["--identity", str(folder / f"{name}.key"), "--state", str(folder / name)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.key = json.loads(self.process.stdout.readline())["witness"]
        self.url = json.loads(self.process.stdout.readline())["url"]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Witnessed:
    """A log's key, three witnesses, and a plan that asks for two of them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.key = Ed25519PrivateKey.generate()
        public = self.key.public_key().public_bytes_raw()
        log = VerifierKey(name=LOG_NAME, type=KeyType.ED25519, public=public).encode()
        self.processes = [Process(folder, f"w{n}.example", log) for n in range(3)]
        for one in self.processes:
            stack.callback(one.kill)
        self.audit = {
            "log": log,
            "witnesses": [one.key for one in self.processes],
            "witness_quorum": 2,
        }

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "audit": self.audit,
            "log_key": self.key,
            "witnesses": [HttpWitness(one.url) for one in self.processes],
        }


@contextmanager
def witnessed(folder: Path) -> Iterator[Witnessed]:
    with ExitStack() as stack:
        yield Witnessed(folder, stack)


def test_rounds_under_witnesses(tmp_path: Path) -> None:
    """No signatures are asked for; the auditor finds every alive set at its place. One may be down."""
    with witnessed(tmp_path) as net:
        asked: list[Phase] = []

        def watch(number: int, attempt: int, phase: Phase, site: int) -> bool:
            asked.append(phase)
            if (number, phase) == (2, Phase.MASK):
                net.processes[0].kill()
            return (number, phase, site) == (1, Phase.MASK, 4)

        run = make_run(tmp_path / "run", lost=watch, **net.settings)
        assert Phase.AGREE not in asked
        assert asked.count(Phase.UNMASK) == 11
        report = audit(Folder(run), Trust())
        assert (report.faults, [one.verdict for one in report.rounds]) == ((), ["ok"] * 3)


def test_groups_under_witnesses_of_which_one_fails(tmp_path: Path) -> None:
    with witnessed(tmp_path) as net:

        def lost(number: int, attempt: int, phase: Phase, site: int) -> bool:
            names = sorted(f"site-{each}" for each in range(15))
            dealt = deal_groups(names, groups=3, seed=5, round_number=number, attempt=attempt)
            return (number, phase) == (2, Phase.MASK) and f"site-{site}" in dealt[0]

        run = make_run(
            tmp_path / "run",
            count=15,
            lost=lost,
            cohort={"size": 15, "quorum": 9, "deadline_s": 30.0},
            secrecy={"groups": 3},
            **net.settings,
        )
        report = audit(Folder(run), Trust())
        assert report.faults == ()
        assert [(one.verdict, one.faults) for one in report.rounds] == [("ok", ())] * 3


def test_without_a_quorum_nothing_is_opened_and_the_run_resumes_later(tmp_path: Path) -> None:
    with witnessed(tmp_path) as net:
        plan, manifest = small_plan(audit=net.audit)
        sites = Sites(plan, manifest, tmp_path / "sites", 6)
        opened: list[int] = []

        def watch(number: int, attempt: int, phase: Phase, site: int) -> bool:
            if phase is Phase.UNMASK:
                opened.append(number)
            return False

        up = net.settings["witnesses"]
        down = [HttpWitness("http://127.0.0.1:9", timeout_s=1.0), *up[:1]]
        with pytest.raises(RoundError, match="missed its quorum"):
            make_run(
                tmp_path / "run", sites=sites, lost=watch, **net.settings | {"witnesses": down}
            )
        assert opened == []
        failed = json.loads((tmp_path / "run/rounds/0001.attempt1.json").read_text())
        assert any("no quorum" in each["detail"] for each in failed["dropped"])
        run = make_run(tmp_path / "run", sites=sites, **net.settings)
        report = audit(Folder(run), Trust())
        assert (report.faults, [one.verdict for one in report.rounds]) == ((), ["ok"] * 3)
        store = RunStore(run)
        log = open_log(store, plan, net.key)
        assert retire_vectors(log, store, plan, now=time.time() + 10**7) == [1, 2]
        store.close()
        # The vectors of attempts that were not opened are in the log, and were not kept.
        assert audit(Folder(run), Trust()).faults == ()


def test_a_second_view_of_the_log_gets_no_quorum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that rewrites the last leaf of what witnesses have seen opens nothing more."""
    with witnessed(tmp_path) as net:
        prepare = RunLog.prepare
        forked: list[int] = []

        def forking(log: RunLog, leaves: Any) -> bytes:
            if log.find(type(None)) == [] and log.size > 40 and not forked:  # type: ignore[type-var]
                forked.append(log.size)
                entries = [*log._entries.between(0, log.size - 1), log.entry(0)]
                log._entries = type(log._entries)(log.folder)
                log._kinds, log._tree = {}, type(log._tree)()
                for data in entries:
                    log._add(data)
            return prepare(log, leaves)

        monkeypatch.setattr(RunLog, "prepare", forking)
        with pytest.raises(RoundError, match="missed its quorum"):
            make_run(tmp_path / "run", rounds=3, **net.settings)
        assert forked
