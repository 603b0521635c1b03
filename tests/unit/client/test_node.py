"""What a coordinator may answer a site's SuperNode."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse
from flwr.proto.run_pb2 import Run as RunProto
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supernode import start_client_internal
from flwr.supernode.fleet_http_client import FleetHttpClient

from client import node

GOOD = GetRunResponse(run=RunProto(run_id=7)).SerializeToString()


class Coordinator:
    """Answers everything with ``status``, ``headers`` and ``body``; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status, self.body = 200, GOOD
        self.headers = {"Content-Length": str(len(GOOD))}
        coordinator = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                coordinator.asked.append(self.path)
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(coordinator.status)
                for name, value in coordinator.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(coordinator.body)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Coordinator]:
    for owner, name in ((ProtobufClient, "__init__"), (start_client_internal, "pull_objects")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back at the end
    node.bound_answers()
    made = Coordinator()
    yield made
    made.close()


def ask(coordinator: Coordinator) -> GetRunResponse:
    client = FleetHttpClient.from_server_address(coordinator.address, True, None, [])
    try:
        return client.GetRun(GetRunRequest(run_id=7))
    finally:
        client.close()


def test_an_honest_answer_arrives(coordinator: Coordinator) -> None:
    assert ask(coordinator).run.run_id == 7


def test_an_answer_says_its_length_and_is_not_packed(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = coordinator.headers
    packed = gzip.compress(GOOD)
    for headers, body in (
        ({}, GOOD),
        ({"Content-Length": str(len(packed)), "Content-Encoding": "gzip"}, packed),
        ({"Content-Length": "9" * 13}, GOOD),
        ({"Content-Length": str(node.ANSWER_BYTES + 1)}, GOOD),
    ):
        coordinator.headers, coordinator.body = headers, body
        with pytest.raises(httpx.RemoteProtocolError):
            ask(coordinator)
    coordinator.headers, coordinator.body = honest, GOOD
    monkeypatch.setattr(node, "ANSWER_BYTES", len(GOOD))
    assert ask(coordinator).run.run_id == 7


def test_an_answer_leads_nowhere_else(coordinator: Coordinator) -> None:
    inside = Coordinator()  # what only this machine reaches
    coordinator.status = 307
    coordinator.headers = {"Location": f"http://{inside.address}/admin", "Content-Length": "0"}
    coordinator.body = b""
    try:
        with pytest.raises(httpx.HTTPStatusError):
            ask(coordinator)
    finally:
        inside.close()
    assert inside.asked == []


def test_a_message_is_bounded(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "MESSAGE_BYTES", 100)
    pull = start_client_internal.pull_objects
    names = [f"{number}" for number in range(10)]
    assert pull(names, pull_object_fn=lambda name: bytes(10))["3"] == bytes(10)
    with pytest.raises(ValueError, match="too long"):
        pull(names, pull_object_fn=lambda name: bytes(11))
