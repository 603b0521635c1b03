"""A device that serves while releases come and go: nothing fails, and what fails is left."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime import agent
from edge_runtime.adapter import read_tensors
from edge_runtime.edge_adapter import write_edge_adapter
from edge_runtime.mapped_graph import MADE, open_mapped
from edge_runtime.runtime import EdgeRuntime
from edge_runtime.service import Service
from edge_runtime.settings import Device
from edge_runtime.store import Store, read_state
from protocol.errors import DeliveryError
from protocol.peft_format import EDGE_FILE, RELEASE_FILE
from tests.delivery_world import World, now, passport, update
from tests.integration.device_load import asked, listening

ROOT = Path(__file__).resolve().parent.parent.parent
TEXTS = ["turn on the light", "play some music"]


def post(port: int, body: Any, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    told = {"Content-Type": "application/json"} | headers
    connection.request("POST", "/v1/classify", data, told)
    answer = connection.getresponse()
    found = answer.read()
    connection.close()
    return answer.status, json.loads(found) if found[:1] == b"{" else found


def with_two_releases(world: World) -> tuple[Device, list[str]]:
    device = world.device()
    offers = []
    for _ in range(2):
        offers.append(world.publish().id)
        update(device)
    return device, offers


def test_a_hundred_swaps_under_load_fail_no_request(world: World) -> None:
    device, offers = with_two_releases(world)
    service = Service(device, clock=time.monotonic)
    with listening(service) as port, asked(port, TEXTS) as load:
        for number in range(100):
            with Store(device.store) as store:
                store.activate(offers[number % 2])
            service.follow()
            load.wait_for(1)
    assert (load.faults, service.swaps, service.failures) == ([], 101, 0)
    assert {said["release"] for said in load.answers} == set(offers)
    # the same adapter twice
    assert len({json.dumps(said["answers"]) for said in load.answers}) == 1


def test_what_a_request_must_be(world: World) -> None:
    device, _ = with_two_releases(world)
    service = Service(device, clock=time.monotonic)
    with listening(service) as port:
        assert post(port, {"texts": TEXTS})[0] == 200
        for body in ({}, {"texts": []}, {"texts": [1]}, {"texts": ["x"], "y": 1}, b"{", b"\xff"):
            assert post(port, body)[0] == 422
        assert post(port, {"texts": ["x"] * 257})[0] == 422
        assert post(port, b"[" * 2_000_000)[0] == 413
        assert post(port, {"texts": TEXTS}, **{"Content-Type": "text/plain"})[0] == 415
        assert post(port, {"texts": TEXTS}, Host="attacker.example")[0] == 400
        with Store(device.store) as store:
            store.withdraw(read_state(device.store).installed)
        service.follow()
        status, told = post(port, {"texts": TEXTS})
        assert (status, told["error"]["code"]) == (503, "serve.empty")


def publish_overflowing(world: World) -> None:
    """Finite weights whose product is not: only running them shows."""

    def change(folder: Path) -> None:
        tensors = read_tensors(folder / EDGE_FILE)
        tensors["classifier.weight"] = np.full_like(tensors["classifier.weight"], 3e38)
        write_edge_adapter(tensors, folder / EDGE_FILE)
        note = json.loads((folder / RELEASE_FILE).read_text())
        note["files"][EDGE_FILE] = hashlib.sha256((folder / EDGE_FILE).read_bytes()).hexdigest()
        (folder / RELEASE_FILE).write_text(json.dumps(note))
        passport(world.log, folder, note["round"])

    world.publish(change=change, log_index=world.log.size + 3)


def test_a_release_that_fails_at_run_time_is_left(world: World, monkeypatch: Any) -> None:
    device, offers = with_two_releases(world)
    clock = [0.0]
    service = Service(device, clock=lambda: clock[0])
    real = EdgeRuntime.infer

    def failing(self: EdgeRuntime, texts: Any, adapter: Any = None, *more: Any) -> Any:
        if adapter is not None and adapter.folder.name == offers[1]:
            raise RuntimeError("as ONNX Runtime would")
        return real(self, texts, adapter, *more)

    monkeypatch.setattr(EdgeRuntime, "infer", failing)
    for _ in range(20):  # once in a long while is no reason
        clock[0] += device.window_s
        with pytest.raises(DeliveryError, match=r"serve\.failed"):
            service.classify(TEXTS)
    assert service.health()["release"] == offers[1]
    for _ in range(device.faults - 1):
        with pytest.raises(DeliveryError, match=r"serve\.failed"):
            service.classify(TEXTS)
    assert service.classify(TEXTS).release == offers[0]
    state = read_state(device.store)
    assert (state.current, state.previous) == (offers[0], None)
    assert "failed answers within 60 s" in state.failed[offers[1]].reason
    report = json.loads((world.folder / "reports/kiosk-1.json").read_text())
    assert [fault["seq"] for fault in report["faults"]] == [2]
    assert update(device).outcome == "up to date"  # it is not taken again


def test_values_that_are_not_finite_stop_at_the_probe(world: World) -> None:
    device, offers = with_two_releases(world)
    publish_overflowing(world)
    with pytest.raises(DeliveryError, match=r"probe\.load"):
        update(device)
    assert read_state(device.store).current == offers[1]


def test_the_serving_process_follows_the_store_and_loads_no_tuf(world: World) -> None:
    device, offers = with_two_releases(world)
    code = (
        "import sys, threading\nfrom fedge.main import main\n"
        "def tell():\n"
        "    print(*sorted({n.partition('.')[0] for n in sys.modules}), flush=True)\n"
        "threading.Timer(2.5, tell).start()\nmain(sys.argv[1:])"
    )
    port = free_port()
    command = ["edge", "serve", str(world.folder / "kiosk-1.toml"), "--port", str(port)]
    with subprocess.Popen(
        [sys.executable, "-c", code, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            seq = wait_for(lambda: post(port, {"texts": TEXTS})[1]["seq"])
            assert seq == 2
            agent.roll_back(device, "tests", now())
            wait_for(lambda: post(port, {"texts": TEXTS})[1]["release"] == offers[0] or None)
            assert process.stdout is not None
            lines = iter(process.stdout.readline, b"")
            loaded = set(
                next(line for line in lines if not line.startswith(b"listening on"))
                .decode()
                .split()
            )
        finally:
            process.send_signal(signal.SIGTERM)
        process.wait(20)
    assert "uvicorn" in loaded
    assert (
        loaded & {"fastapi", "tuf", "securesystemslib", "torch", "flwr", "transformers", "onnx"}
        == set()
    )


def test_the_mapped_graph_gives_the_same_bits_and_heals(world: World, tmp_path: Path) -> None:
    plain = EdgeRuntime(open_mapped(world.base, Path("/dev/null/x"), threads=1))
    mapped = open_mapped(world.base, tmp_path / "graph", threads=1)
    (folder,) = (path for path in (tmp_path / "graph").iterdir() if path.is_dir())
    stamp = (folder / MADE).read_bytes()
    runtime = EdgeRuntime(mapped)
    for one in (plain, runtime):
        one.activate(world.adapters["good"])
    expected = plain.logits(TEXTS)
    assert (expected == runtime.logits(TEXTS)).all()
    open_mapped(world.base, tmp_path / "graph", threads=1)
    assert (folder / MADE).read_bytes() == stamp  # made once
    data = folder / "graph.data"  # what is open has it mapped, so that it is replaced here
    damaged = data.read_bytes()[:-100]
    data.unlink()
    data.write_bytes(damaged)
    again = EdgeRuntime(open_mapped(world.base, tmp_path / "graph", threads=1))
    again.activate(world.adapters["good"])
    assert (again.logits(TEXTS) == expected).all()
    assert (runtime.logits(TEXTS) == expected).all()


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def wait_for(ask: Any, seconds: float = 40.0) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            found = ask()
        except (OSError, KeyError, http.client.HTTPException):
            found = None
        if found is not None:
            return found
        time.sleep(0.05)
    raise AssertionError("nothing within the time allowed")
