"""Who is not enrolled can neither join, nor run, nor read, at a real coordinator on loopback."""

from __future__ import annotations

import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest, GetNodesRequest

from operations.contact import make_contact
from operations.coordinator import Coordinator, make_coordinator
from operations.folders import free_port
from operations.overview import control_of, look
from operations.site import Site, Work, make_site, read_invitation, read_node_key
from operations.supervisor import processes_of
from operations.waiting import away, doubled, not_begun, said_of_doubled
from protocol.errors import MachineError
from protocol.plan_sections import Cohort
from tests.unit.fedge.test_command_line import fedge

PROTOBUF = {"content-type": "application/protobuf", "accept": "application/protobuf"}


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    made = make_coordinator(
        tmp_path_factory.mktemp("coordinator") / "c",
        ["127.0.0.1"],
        name="t",
        ports=(free_port(), free_port(), free_port()),
        address="127.0.0.1",
        now=now(),
    )
    started = fedge("coordinator", "start", made.folder)
    try:
        assert started.returncode == 0, started.stderr
        yield made
    finally:
        assert fedge("coordinator", "stop", made.folder).returncode == 0


def site(coordinator: Coordinator, folder: Path, name: str) -> Site:
    invitation = read_invitation(coordinator.folder / "invitation.json")
    return make_site(folder / name, name, invitation, work=Work(), port=free_port())


def headers(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    stamp = now().isoformat()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public = key.public_key().public_bytes(serialization.Encoding.PEM, form)
    signature = key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": b64encode(public).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": b64encode(signature).decode(),
    }


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form)


def post(
    coordinator: Coordinator, port: int, path: str, message: object, **more: str
) -> httpx.Response:
    context = ssl.create_default_context(cadata=coordinator.authority.decode())
    with httpx.Client(verify=context, trust_env=False) as client:
        return client.post(
            f"https://127.0.0.1:{port}{path}",
            content=message.SerializeToString(),  # type: ignore[attr-defined]
            headers=PROTOBUF | more,
        )


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if what():
            return
        time.sleep(0.2)
    pytest.fail("it did not happen")


def test_a_stranger_cannot_join_run_or_read(coordinator: Coordinator, tmp_path: Path) -> None:
    settings = coordinator.settings
    public, private = settings.public.port, settings.private.port
    key = ec.generate_private_key(ec.SECP384R1())
    asked = (
        ("/v1/fleet/register-node", RegisterNodeFleetRequest(public_key=pem(key)), (404, 404)),
        ("/v1/fleet/activate-node", _activate(key), (401, 404)),
        ("/v1/fleet/pull-messages", PullMessagesRequest(node=Node(node_id=1)), (401, 404)),
        ("/v1/fleet/get-fab", GetFabRequest(hash_str="a"), (401, 404)),
        ("/v1/control/start-run", StartRunRequest(), (404, 401)),
        ("/v1/control/register-node", RegisterNodeRequest(public_key=pem(key)), (404, 401)),
        ("/v1/control/list-nodes", ListNodesRequest(), (404, 401)),
        ("/v1/runtime/acquire-task", AcquireTaskRequest(), (404, 401)),
        ("/v1/runtime/get-nodes", GetNodesRequest(), (404, 401)),
    )
    for signed in ({}, headers(key)):
        for path, message, statuses in asked:
            for port, status in zip((public, private), statuses, strict=True):
                answer = post(coordinator, port, path, message, **signed)
                assert answer.status_code == status, (path, port)
                assert not answer.content or status == 401
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://127.0.0.1:{public}/", trust_env=False)  # not this CA, no connection
    stranger = site(coordinator, tmp_path, "stranger")
    assert make_contact(stranger, now).fault == "refused: the operator has not admitted this site"
    assert not (stranger.folder / "roster.json").exists()


def _activate(key: ec.EllipticCurvePrivateKey) -> ActivateNodeRequest:
    return ActivateNodeRequest(public_key=pem(key), heartbeat_interval=30)


def test_an_enrolled_site_joins_until_it_is_removed(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    public = coordinator.settings.public.port
    ward = site(coordinator, tmp_path, "ward-1")
    coordinator.admit((ward.folder / "request.json").read_bytes(), source="r")
    wait_for(lambda: make_contact(ward, now).status == 200)
    assert '"ward-1"' in (ward.folder / "roster.json").read_text()
    key = read_node_key(ward.folder / "keys" / "node.key")

    def activate() -> httpx.Response:
        path = "/v1/fleet/activate-node"
        return post(coordinator, public, path, _activate(key), **headers(key))

    wait_for(lambda: activate().status_code == 200)
    again = activate()  # killed and started again: not refused until its heartbeats are missed
    assert again.status_code == 200
    assert [one.status for one in look(coordinator).sites] == ["online"]
    number = ActivateNodeResponse.FromString(again.content).node_id
    control = control_of(coordinator)
    listed = control._client.ListNodes(ListNodesRequest()).nodes_info
    control.close()
    assert ("ward-1", number) in [(node.name, node.node_id) for node in listed]  # see call_roll
    pull = PullMessagesRequest(node=Node(node_id=number))
    assert post(coordinator, public, "/v1/fleet/pull-messages", pull).status_code == 401
    other = PullMessagesRequest(node=Node(node_id=number + 1))
    for message, status in ((pull, 200), (other, 401)):
        answer = post(coordinator, public, "/v1/fleet/pull-messages", message, **headers(key))
        assert answer.status_code == status
    coordinator.remove("ward-1")
    wait_for(lambda: activate().status_code == 401)
    assert make_contact(ward, now).status == 401
    coordinator.admit((ward.folder / "request.json").read_bytes(), source="r")
    wait_for(lambda: activate().status_code == 200)
    coordinator.remove("ward-1")


def test_the_operators_token_opens_control(coordinator: Coordinator) -> None:
    control = control_of(coordinator)
    try:
        assert isinstance(control.nodes(), list)
    finally:
        control.close()
    with pytest.raises(MachineError, match="401"):
        type(control)(
            coordinator.settings.private.port, authority=coordinator.authority, token="x"
        ).nodes()
    again = fedge("coordinator", "start", coordinator.folder)
    assert again.returncode == 8
    assert "runs already" in again.stderr
    metrics = f"http://127.0.0.1:{coordinator.settings.private.metrics_port}/metrics"
    assert "fedge_process_up" in httpx.get(metrics, trust_env=False).text


def command_lines(folder: Path) -> set[str]:
    """Of the processes that work in ``folder``, as any user of the machine reads them."""
    found = set()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and (entry / "cwd").resolve() == folder:
                found.add((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_runs_token_is_on_nobodys_command_line(coordinator: Coordinator, tmp_path: Path) -> None:
    """Who has it pushes and pulls messages as the run: another user of the machine could."""
    control, seen = control_of(coordinator), set[str]()
    config = {key: str(tmp_path / key) for key in ("plan", "base", "run")}
    try:
        run = control.start_run({**config})
        until = time.monotonic() + 60
        while not control.run_state(run).finished and time.monotonic() < until:
            seen |= command_lines(coordinator.work)
            time.sleep(0.1)
        assert control.run_state(run).failed_by_itself  # so it had its token: the plan is missing
    finally:
        control.close()
    assert any("server.apps serverapp" in line for line in seen)
    assert not [line for line in seen if re.search("--token|[0-9a-f]{32}", line)]


def test_a_clock_that_is_wrong_by_a_day_is_named(coordinator: Coordinator, tmp_path: Path) -> None:
    from datetime import timedelta

    ward = site(coordinator, tmp_path, "ward-2")
    coordinator.admit((ward.folder / "request.json").read_bytes(), source="r")
    wait_for(lambda: make_contact(ward, now).status == 200)
    found = make_contact(ward, lambda: now() + timedelta(days=1))
    assert found.status == 401
    assert "clock" in found.fault
    assert found.clock_apart_s == pytest.approx(86400, abs=60)
    coordinator.remove("ward-2")


def test_logs_hold_no_secret(coordinator: Coordinator) -> None:
    text = (coordinator.state / "log.jsonl").read_text()
    assert "not enrolled" in text
    assert coordinator.token not in text
    for path in (coordinator.folder / "keys").iterdir():
        if path.suffix == ".key":
            assert path.read_text(errors="replace").strip()[:40] not in text


def test_a_port_that_is_taken_is_said_at_once(coordinator: Coordinator, tmp_path: Path) -> None:
    other = make_coordinator(
        tmp_path / "o",
        ["127.0.0.1"],
        name="o",
        ports=(coordinator.settings.public.port, free_port(), free_port()),
        address="127.0.0.1",
        now=now(),
    )
    done = subprocess.run(
        [sys.executable, "-m", "fedge", "coordinator", "start", str(other.folder)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 8
    assert "cannot be listened at" in done.stderr
    status = fedge("coordinator", "status", other.folder)
    assert status.returncode == 8


def test_a_copied_folder_is_named_and_only_the_copy_is_refused(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    first = site(coordinator, tmp_path, "ward-twice")
    other = site(coordinator, tmp_path, "ward-once")
    for each in (first, other):
        request = (each.folder / "request.json").read_bytes()
        coordinator.admit(request, source="r")
    wait_for(lambda: make_contact(other, now).status == 200)
    copy = Site.open(shutil.copytree(first.folder, tmp_path / "copy"))
    assert make_contact(first, now).status == 200
    assert make_contact(copy, now).status == 200  # it might be a start of the same site
    again = make_contact(first, now)
    assert (again.status, again.fault) == (200, "")
    refused = make_contact(copy, now)
    assert refused.status == 409
    assert "ward-twice is on line twice" in refused.fault
    assert make_contact(other, now).status == 200
    twice = {view.name: view.twice for view in look(coordinator).sites}
    assert (twice["ward-twice"], twice["ward-once"]) == (True, False)
    shown = fedge("status", coordinator.folder, "--once").stdout
    assert "on line twice" in shown
    control = control_of(coordinator)
    try:
        assert said_of_doubled(doubled(coordinator, control, Cohort())).startswith(
            "ward-twice is on line"
        )
    finally:
        control.close()


def test_a_run_says_what_it_waits_for(coordinator: Coordinator) -> None:
    """Nobody starts its app; then it is said who that is, and after five minutes it is an error."""
    starter = next(p for p in processes_of(coordinator.state) if p.name == "superexec")
    assert starter.pid
    control = control_of(coordinator)
    os.kill(starter.pid, signal.SIGSTOP)
    try:
        run = control.start_run({"plan": "", "base": "", "run": ""})
        said = not_begun(coordinator, control, run, 10)
        assert "pending for 10 s and its app has not begun" in said
        assert "`superexec`, which starts it, is up" in said
        with pytest.raises(MachineError, match="has not begun"):
            not_begun(coordinator, control, run, 301)
        online, missing = away(coordinator, control, Cohort())
        assert online == 0
        assert all(site.name in missing for site in coordinator.roster().sites[:8])
        control.stop_run(run)
    finally:
        os.kill(starter.pid, signal.SIGCONT)
        control.close()


def test_a_proxy_of_the_environment_is_for_elsewhere(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    control = control_of(coordinator)
    try:
        assert isinstance(control.nodes(), list)
    finally:
        control.close()
