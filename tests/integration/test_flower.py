"""Flower's own processes (SuperLink, SuperNodes, `flwr run`) give the in-process grid's adapter."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from simulations.experiment import load_experiment
from simulations.jobs import EXPAND_MIB
from simulations.progress import NoProgress
from simulations.run import simulate
from simulations.summary import Summary

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
OVERRIDES = {
    "plain": ["plan.rounds=2", "plan.cohort.quorum=2"],
    "secagg": [
        "plan.rounds=2",
        "plan.cohort.quorum=3",
        "plan.cohort.weighting=uniform",
        "plan.secrecy.exchange=secagg",
    ],
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: list[str], folder: Path, env: dict[str, str], log: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process and everything it starts, in a group of its own; all of it ends with the block."""
    with (folder / log).open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def environment(home: Path) -> dict[str, str]:
    """Flower reads and writes one folder, reaches nobody outside and finds its own programs."""
    home.mkdir()
    return {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def wait_for_port(address: str) -> None:
    host, port = address.split(":")
    for _ in range(120):
        with suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        time.sleep(0.5)
    pytest.fail(f"nothing listens at {address}")


def wait_until_finished(env: dict[str, str], seconds: float) -> dict[str, str]:
    """The run's entry of `flwr list`; `flwr run` itself says nothing about success."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        listed = subprocess.run(
            [str(BIN / "flwr"), "list", "here", "--format", "json"],
            env=env,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        run: dict[str, str] = json.loads(listed.stdout)["runs"][0]
        if run["status"].startswith("finished"):
            return run
        time.sleep(2)
    pytest.fail("the run did not finish")


@contextmanager
def flower(
    here: Path, base: Path, out: Path, tmp_path: Path, *, sites: int, secret: bool
) -> Iterator[tuple[dict[str, str], list[subprocess.Popen[bytes]]]]:
    """Flower's processes for the plan in ``here``, its run started: the user's environment, the SuperNodes."""
    link = f"127.0.0.1:{free_port()}"
    with ExitStack() as stack:

        def start(name: str, command: list[str]) -> subprocess.Popen[bytes]:
            env = environment(tmp_path / f"home-{name}")
            program = [str(BIN / command[0]), *command[1:]]
            return stack.enter_context(running(program, tmp_path, env, f"{name}.log"))

        host, port = link.split(":")
        start(
            "link",
            [
                *("flower-superlink", "--insecure", "--host", host, "--port", port),
                "--disable-runtime-dependency-installation",
            ],
        )
        wait_for_port(link)
        nodes = []
        for number in range(sites):
            settings = (
                f'client-id="client-{number:04d}" threads=1 expand-mib={EXPAND_MIB} '
                f'data-path="{here}/clients/client-{number:04d}.jsonl"'
            )
            if secret:  # then the site names everything itself
                settings += (
                    f' identity="{here}/clients/client-{number:04d}.key" '
                    f'roster="{here}/roster.json" plan="{here}/plan.json" base="{base}"'
                )
            node = ["flower-supernode", "--insecure", "--superlink", link]
            node += ["--port", str(free_port()), "--node-config", settings]
            nodes.append(start(f"node-{number}", node))
        env = environment(tmp_path / "home-user")
        (tmp_path / "home-user" / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{link}"\ninsecure = true\n'
        )
        config = f'plan="{here}/plan.json" base="{base}" run="{out}" roster="{here}/roster.json"'
        command = [str(BIN / "flwr"), "run", str(ROOT), "here", "--run-config", config]
        started = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert started.returncode == 0, started.stdout + started.stderr
        yield env, nodes


def simulated(experiment_file: Path, here: Path, overrides: list[str]) -> tuple[Summary, Path]:
    """The same in one process, whose sites have not yet opened a round; its base."""
    import torch

    torch.set_num_threads(1)
    common = ["population.clients=3", "yardsticks.pooled=false", "yardsticks.alone=0"]
    experiment = load_experiment(experiment_file, [*common, *overrides])
    summary = simulate(experiment, here, resume=False, progress=NoProgress())
    for memory in (here / "clients").glob("*.openings.jsonl"):
        memory.unlink()  # the simulated sites opened these very rounds, and would not do so again
    base = (here / json.loads((here / "experiment.json").read_text())["base_folder"]).resolve()
    return summary, base


@pytest.mark.slow
@pytest.mark.parametrize("exchange", sorted(OVERRIDES))
def test_superlink_and_supernodes_give_the_same_adapter(
    experiment_file: Path, tmp_path: Path, exchange: str
) -> None:
    here, out = experiment_file.parent / f"for-flower-{exchange}", tmp_path / "run"
    overrides = ["plan.cohort.size=3", *OVERRIDES[exchange]]
    summary, base = simulated(experiment_file, here, overrides)
    with flower(here, base, out, tmp_path, sites=3, secret=exchange == "secagg") as (env, _):
        ended = wait_until_finished(env, 540)
    assert ended["status"] == "finished:completed", ended["status-details"]
    record = json.loads((out / "rounds" / "0002" / "record.json").read_text())
    assert record["adapter_out"] == summary.adapter_digest
    rows = here / "test.jsonl"
    for command in (["release", out, "--base", base, "--rows", rows], ["report", out]):
        program = [sys.executable, "-m", "fedge", *map(str, command)]
        subprocess.run(program, env=env, cwd=ROOT, check=True, timeout=120)
    assert (out / "rounds" / "0002" / "adapter" / "adapter.onnx_adapter").is_file()


@pytest.mark.slow
def test_a_site_that_stands_still_holds_up_no_round_that_can_spare_it(
    experiment_file: Path, tmp_path: Path
) -> None:
    """One of three SuperNodes is stopped once round 1 has asked it: two updates close the round, and the next."""
    here, out = experiment_file.parent / "for-flower-spare", tmp_path / "run"
    cohort = ["plan.cohort.size=2", "plan.cohort.spare=1", "plan.cohort.quorum=2"]
    _, base = simulated(experiment_file, here, ["plan.rounds=2", *cohort])
    with flower(here, base, out, tmp_path, sites=3, secret=False) as (env, nodes):
        deadline = time.monotonic() + 300
        while not (out / "rounds/.0001.open/round.json").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(nodes[2].pid, signal.SIGSTOP)
        ended = wait_until_finished(env, 540)
    assert ended["status"] == "finished:completed", ended["status-details"]
    first, second = (
        json.loads((out / f"rounds/{number:04d}/record.json").read_text()) for number in (1, 2)
    )
    assert {d["client"]: d["reason"] for d in first["dropped"]} == {"client-0002": "unawaited"}
    assert second["expected"] == second["used"] == ["client-0000", "client-0001"]


@pytest.mark.slow
def test_what_a_site_trained_too_late_is_in_a_later_sum(
    experiment_file: Path, tmp_path: Path
) -> None:
    """One of five SuperNodes is stopped before it masks, and goes on when the round has closed without it."""
    here, out = experiment_file.parent / "for-flower-late", tmp_path / "run"
    cohort = ["plan.cohort.size=4", "plan.cohort.spare=1", "plan.cohort.quorum=4"]
    secret = ["plan.cohort.weighting=uniform", "plan.secrecy.exchange=secagg"]
    late = ["plan.cohort.late_rounds=8", "plan.rule.name=mean"]
    settings = ["population.clients=5", "plan.rounds=5", *cohort, *secret, *late]
    _, base = simulated(experiment_file, here, settings)
    for memory in (here / "clients").glob("*.key.*"):
        shutil.rmtree(memory) if memory.is_dir() else memory.unlink()
    site = here / "clients" / "client-0004.key"
    shared = re.compile(r"Sending: train\.share .*Sent successfully", re.DOTALL)
    seen: set[tuple[int, int]] = (
        set()
    )  # the round that its update was trained in, the attempt's number
    with flower(here, base, out, tmp_path, sites=5, secret=True) as (env, nodes):
        log = tmp_path / "node-4.log"
        wait_until(lambda: shared.search(log.read_text("latin-1")) is not None)
        os.killpg(nodes[4].pid, signal.SIGSTOP)
        wait_until(lambda: (out / "rounds/0001/record.json").exists())
        os.killpg(nodes[4].pid, signal.SIGCONT)

        def is_kept_again() -> bool:
            about = re.search(
                r'"round\\*":(\d+),.*seq\\*":(\d+)', text_in(site.with_name(site.name + ".kept"))
            )
            if about:
                seen.add((int(about[1]), int(about[2])))
            return any(number == 1 < sequence for number, sequence in seen)

        wait_until(is_kept_again)
        ended = wait_until_finished(env, 540)
    assert ended["status"] == "finished:completed", ended["status-details"]
    records = [
        json.loads((out / f"rounds/{number:04d}/record.json").read_text()) for number in range(1, 6)
    ]
    dropped = {d["client"]: d["reason"] for d in records[0]["dropped"]}
    assert dropped == {"client-0004": "unawaited"}
    (sequence,) = {sequence for number, sequence in seen if number == 1 < sequence}
    (record,) = (each for each in records if each["sequence"] == sequence)
    assert "client-0004" in record["used"]


def wait_until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def text_in(folder: Path) -> str:
    """Of all files there; of none where there is no folder yet."""
    with suppress(OSError):
        return "".join(path.read_text("latin-1") for path in sorted(folder.iterdir()))
    return ""
