"""A whole consortium as processes: rounds, audit, release, devices; and a run that survives `kill -9`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import pytest

from operations.contact import last_contact
from operations.coordinator import Coordinator
from operations.folders import free_port
from operations.loopback import Consortium, environment, fedge
from operations.overview import look
from operations.rehearsal import devices
from operations.site import Site
from simulations.experiment import load_experiment
from simulations.prepare import prepare
from simulations.progress import NoProgress
from tests.connect_proxy import ConnectProxy

OUTSIDE = "coordinator.example"
Stage = TypeVar("Stage", bound=Consortium)
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    "population.clients=4",
    "yardsticks.pooled=false",
    "yardsticks.alone=0",
    "plan.rounds=2",
    "plan.cohort.size=4",
    "plan.cohort.quorum=3",
    "plan.cohort.weighting=uniform",
    "plan.secrecy.exchange=secagg",
]


def processes_of(folder: Path) -> list[str]:
    """Command lines that name the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and "pytest" not in line:
            found.append(line)
    return found


@pytest.mark.slow
def test_from_enrolment_to_devices_that_answer(experiment_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "devices"
    experiment = load_experiment(experiment_file, SETTINGS)
    summary = devices(experiment, out, floor=0.05, say=lambda text: None)
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["rounds_finished"] == 2
    assert summary["adapter_sha256"] == summary["adapter_sha256_in_process"]
    assert summary["audit_verified"]
    assert summary["devices_serving"] == 2
    assert processes_of(out) == []
    overview = look(Coordinator.open(out / "coordinator"))
    assert [run.state for run in overview.runs] == ["finished"]
    assert overview.runs[0].replies == 8
    for log in out.rglob("log.jsonl"):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert lines
        assert {"time", "component", "level", "message"} <= set(lines[0])
    secrets = [p.read_bytes() for p in (out / "sites").glob("*/keys/*.key")]
    rows = (out / "in-process" / "clients" / "client-0000.jsonl").read_text().splitlines()[:20]
    texts = [json.loads(row)["text"].encode() for row in rows]
    for log in out.rglob("state/*"):
        if log.is_file() and log.suffix in (".jsonl", ".json", ".log"):
            content = log.read_bytes()
            assert not any(secret.strip()[:48] in content for secret in secrets)
            assert not any(text in content for text in texts if len(text) > 12)


class Throttle:
    """A TCP proxy to ``port`` that passes ``rate`` bytes a second each way."""

    def __init__(self, port: int, rate: int) -> None:
        self._port, self._rate, self.passed = port, rate, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                return
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(16_384):
                time.sleep(len(data) / self._rate)
                sink.sendall(data)
                self.passed += len(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, kw_only=True)
class Slow(Consortium):
    """Its first site has a slow link."""

    links: list[Throttle] = field(default_factory=list)

    def enrol(self, name: str) -> None:
        super().enrol(name)
        if name == self.names[0]:
            port = Coordinator.open(self.coordinator).settings.public.port
            self.links.append(Throttle(port, 1_000_000))
            path = self.site(name) / "coordinator.json"
            invitation = json.loads(path.read_text()) | {"address": self.links[0].address}
            path.write_text(json.dumps(invitation))


def staged(kind: type[Stage], experiment_file: Path, folder: Path, settings: list[str]) -> Stage:
    """A consortium that is not made yet, with the plan and the rows of a prepared simulation."""
    experiment = load_experiment(experiment_file, [*SETTINGS, *settings])
    simulated = experiment_file.parent / folder.name
    prepared = prepare(experiment, simulated, resume=False, progress=NoProgress())
    return kind(out=folder, simulated=prepared.out, base=prepared.base)


@pytest.mark.slow
def test_a_slow_link_and_a_site_that_sleeps(experiment_file: Path, tmp_path: Path) -> None:
    """The run goes on without the sleeper, names it, and has it again when it wakes."""
    rounds, deadline = 5, 20.0
    more = [f"plan.rounds={rounds}", f"plan.cohort.deadline_s={deadline}"]
    out, stage = tmp_path / "run", staged(Slow, experiment_file, tmp_path, more)
    with stage.running(lambda text: None):
        sleeper = stage.names[-1]
        run = subprocess.Popen(stage.run_command(out, resume=False), env=environment())
        try:
            asleep, seen = False, 0
            while run.poll() is None:
                rounds_done = len(list((out / "rounds").glob("[0-9]*[0-9]")))
                if not asleep and rounds_done >= 2:  # rounds 0 and 1
                    signal_site(stage.site(sleeper), signal.SIGSTOP)
                    asleep, seen = True, rounds_done
                elif asleep and rounds_done > seen:
                    signal_site(stage.site(sleeper), signal.SIGCONT)
                time.sleep(0.5)
        finally:
            signal_site(stage.site(sleeper), signal.SIGCONT)
            run.wait()
        assert run.returncode == 0
    records = [json.loads(p.read_text()) for p in sorted((out / "rounds").glob("*/record.json"))]
    assert len(records) == rounds + 1
    without = [record["round"] for record in records[1:] if sleeper not in record["used"]]
    assert without
    missed = next(record for record in records if record["round"] == without[0])
    assert sleeper in json.dumps([missed["dropped"], missed["lost"]])
    assert sleeper in records[-1]["used"] or len(without) < rounds
    assert all(stage.names[0] in record["used"] for record in records[1:])
    assert stage.links[0].passed > 10_000
    stage.links[0].close()


@pytest.mark.slow
def test_a_site_that_is_needed_is_waited_for(experiment_file: Path, tmp_path: Path) -> None:
    """With a quorum of all, a site that restarts costs time and nothing else."""
    more = ["plan.rounds=3", "plan.cohort.quorum=4", "plan.cohort.deadline_s=60"]
    out, stage = tmp_path / "run", staged(Consortium, experiment_file, tmp_path, more)
    with stage.running(lambda text: None):
        run = subprocess.Popen(
            stage.run_command(out, resume=False),
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        while run.poll() is None and not (out / "rounds" / "0001").exists():
            time.sleep(0.2)
        fedge("client", "stop", stage.site(stage.names[0]))
        time.sleep(8)
        fedge("client", "start", stage.site(stage.names[0]))
        _, said = run.communicate(timeout=300)
        assert run.returncode == 0, said
    assert "3 sites are on line, the quorum is 4: waiting up to 60 s for client-0000" in said
    assert "4 sites are on line, the quorum is 4: going on" in said
    records = [json.loads(p.read_text()) for p in sorted((out / "rounds").glob("*/record.json"))]
    assert [len(record["used"]) for record in records] == [0, 4, 4, 4]


@dataclass(frozen=True, kw_only=True)
class BehindProxy(Consortium):
    """Its first site reaches the coordinator by a name that the proxy alone knows."""

    def enrol(self, name: str) -> None:
        super().enrol(name)
        if name == self.names[0]:
            port = Coordinator.open(self.coordinator).settings.public.port
            path = self.site(name) / "coordinator.json"
            invitation = json.loads(path.read_text()) | {"address": f"{OUTSIDE}:{port}"}
            path.write_text(json.dumps(invitation))


@pytest.mark.slow
def test_a_consortium_with_proxy_variables_set(
    experiment_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One site is behind the proxy; whatever is on this machine is never asked of it, or of a closed port."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "intranet.example")
    stage = staged(BehindProxy, experiment_file, tmp_path, ["plan.cohort.quorum=4"])
    stage = replace(stage, hosts=("127.0.0.1", OUTSIDE))
    with ConnectProxy({OUTSIDE}) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        with stage.running(lambda text: None):
            out = tmp_path / "run"
            done = fedge(*stage.run_command(out, resume=False)[4:])
        assert done["rounds"] == 2
        assert {target.partition(":")[0] for target in proxy.asked} == {OUTSIDE}


@pytest.mark.slow
def test_a_site_that_runs_twice_is_named(experiment_file: Path, tmp_path: Path) -> None:
    """Its copy is refused and named; the run goes on with all, and nobody else is blamed."""
    stage = staged(Consortium, experiment_file, tmp_path, ["plan.rounds=4"])
    out = tmp_path / "run"
    with stage.running(lambda text: None):
        original = stage.site(stage.names[0])
        copy = tmp_path / "copied"
        shutil.copytree(original, copy, ignore=shutil.ignore_patterns("state", "socket"))
        (copy / "state").mkdir()
        settings = (copy / "config.toml").read_text()
        port = Site.open(original).settings.port
        (copy / "config.toml").write_text(
            settings.replace(f"port = {port}", f"port = {free_port()}")
        )
        fedge("client", "start", copy)
        try:
            run = subprocess.Popen(
                stage.run_command(out, resume=False),
                env=environment(),
                stderr=subprocess.PIPE,
                text=True,
            )
            _, said = run.communicate(timeout=400)
            overview = look(Coordinator.open(stage.coordinator))
            copied = last_contact(Site.open(copy))
        finally:
            fedge("client", "stop", copy)
    assert run.returncode == 0, said
    assert f"{stage.names[0]} is on line twice" in said
    assert [site.name for site in overview.sites if site.twice] == [stage.names[0]]
    assert copied is not None
    assert f"{stage.names[0]} is on line twice" in copied.fault


def signal_site(folder: Path, number: int) -> None:
    """Every process that a site keeps, and its supervisor."""
    from operations.supervisor import processes_of as kept
    from storage.locks import holder

    pids = [process.pid for process in kept(folder / "state")]
    for pid in filter(None, [holder(folder / "state" / "supervisor.lock"), *pids]):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.slow
def test_a_short_campaign_of_kills(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--json"]
    out = tmp_path / "faults"
    done = subprocess.run(
        [*script, "--rounds", "3", "--kills", "6", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert (found["exit_code"], found["rounds_finished"]) == (0, 3)
    assert found["adapter_always_valid"]
    assert found["audit"] == "ok"
    assert found["kills"] >= 4  # a run may end while a process comes back
    assert processes_of(out) == []
