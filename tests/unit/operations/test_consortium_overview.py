"""A consortium's certificates, its overview and its metrics, without processes."""

from __future__ import annotations

import json
import ssl
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import create_connection, create_server

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from operations.certificates import issue, make_authority
from operations.coordinator import Coordinator
from operations.folders import Invitation, free_port
from operations.metrics import Families, serve_metrics
from operations.overview import Overview, RunView, SiteView, look
from operations.supervisor import Process
from protocol.errors import MachineError
from tests.unit.operations.consortium import NOW, enrolled, request_of


def test_a_certificate_holds_for_its_hosts_and_is_renewed(coordinator: Coordinator) -> None:
    authority = make_authority("a", now=datetime.now(UTC))
    pair = issue(authority, ["127.0.0.1", "localhost"], now=datetime.now(UTC))
    path = coordinator.folder / "pair.pem"
    path.write_bytes(pair.certificate + pair.key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    with create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                try:
                    server.wrap_socket(connection, server_side=True).close()
                except OSError:
                    connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        address = listener.getsockname()
        client = ssl.create_default_context(cadata=authority.certificate.decode())
        with (
            create_connection(address) as raw,
            client.wrap_socket(raw, server_hostname="localhost"),
        ):
            pass
        with create_connection(address) as raw, pytest.raises(ssl.SSLCertVerificationError):
            client.wrap_socket(raw, server_hostname="elsewhere")
        thread.join()
    before = (coordinator.folder / "keys" / "server.pem").read_bytes()
    assert not coordinator.renew_certificate(NOW + timedelta(days=300))
    assert coordinator.renew_certificate(NOW + timedelta(days=340))
    assert (coordinator.folder / "keys" / "server.pem").read_bytes() != before
    assert not coordinator.renew_certificate(NOW + timedelta(days=341))


def test_an_overview_without_processes(
    coordinator: Coordinator, invitation: Invitation, tmp_path: Path
) -> None:
    coordinator.admit(request_of(enrolled(tmp_path, "ward-1", invitation)), source="r")
    overview = look(coordinator)
    assert (overview.running, overview.healthy) == (False, False)
    assert [(site.name, site.status) for site in overview.sites] == [("ward-1", "unknown")]


def test_metrics_are_openmetrics() -> None:
    run = RunView(
        name='a "b"\\c',
        folder="/r",
        rounds=3,
        planned=5,
        state="running",
        cause="",
        replies=12,
        drops=1,
        failed_attempts=2,
        void_rounds=0,
        failures=2,
        clipped=0.75,
        refused=1,
        epsilon=1.5,
        last_round_at=None,
    )
    seen = Overview(
        running=True,
        processes=[Process(name="superlink", pid=None, restarts=2, last_exit=-9)],
        sites=[SiteView(name="ward-1", status="online", last_activated_at="")],
        roster_version=4,
        runs=[run, replace(run, name="other", epsilon=None, clipped=None)],
    )
    registry = CollectorRegistry()
    registry.register(Families(lambda: seen))
    text = generate_latest(registry).decode()
    lines = text.splitlines()
    assert lines[-1] == "# EOF"
    samples = {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }
    assert samples[r'fedge_epsilon{run="a \"b\"\\c"}'] == 1.5
    assert 'fedge_epsilon{run="other"}' not in samples
    assert samples['fedge_drops_total{run="other"}'] == 1.0
    assert samples['fedge_client_failures_total{run="other"}'] == 2.0
    assert samples['fedge_sums_refused_total{run="other"}'] == 1.0
    assert samples[r'fedge_clipped_share{run="a \"b\"\\c"}'] == 0.75
    assert 'fedge_clipped_share{run="other"}' not in samples
    assert samples['fedge_process_up{process="superlink"}'] == 0.0
    assert samples['fedge_process_restarts_total{process="superlink"}'] == 2.0
    assert samples["fedge_roster_version"] == 4.0
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families))
    json.dumps(samples)


def test_they_are_served_on_loopback_and_nothing_else_is(
    capfd: pytest.CaptureFixture[str],
) -> None:
    seen = Overview(running=True, processes=[], sites=[], roster_version=4, runs=[])
    faults: list[Exception] = []

    def looked() -> Overview:
        if faults:
            raise faults[0]
        return seen

    port = free_port()
    server = serve_metrics(port, looked)
    try:
        assert server.server_address[0] == "127.0.0.1"
        url = f"http://127.0.0.1:{port}/metrics"
        text = httpx.get(url, trust_env=False).text
        assert "fedge_roster_version 4.0\n" in text
        assert all(line.startswith(("fedge_", "# ")) for line in text.splitlines())
        for fault in (MachineError("the list of runs is damaged", "remove it"), OSError("gone")):
            faults[:] = [fault]
            answer = httpx.get(url, trust_env=False)
            assert (answer.status_code, "fedge" in answer.text) == (200, False)
        with pytest.raises(MachineError, match="cannot be listened at"):
            serve_metrics(port, looked)
    finally:
        server.shutdown()
        server.server_close()
    assert capfd.readouterr().err == ""  # the supervisor's log
