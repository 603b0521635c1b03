"""`fedge edge serve` against other programs and web pages on the device: who is heard, and for how long."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest
from uvicorn.server import Server

from edge_runtime import http_server
from edge_runtime.service import Answer, Service
from edge_runtime.settings import Device

BODY = json.dumps({"texts": ["turn on the light"]}).encode()
JSON = b"Content-Type: application/json\r\n"
HOST = b"Host: 127.0.0.1\r\n"


@pytest.fixture
def port(kiosk: Device, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(http_server, "REQUEST_S", 0.4)
    monkeypatch.setattr(http_server, "MOST_CONNECTIONS", 8)
    with listening(kiosk) as (server, _):
        yield server.servers[0].sockets[0].getsockname()[1]


@contextmanager
def listening(device: Device) -> Iterator[tuple[Server, threading.Thread]]:
    config = http_server.settings(Service(device, clock=time.monotonic))
    config.port = 0
    server = Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server, thread
    finally:
        server.should_exit = True
        thread.join(20)


def said(port: int, request: bytes, seconds: float = 10.0) -> bytes:
    """Everything that is answered until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as line:
        line.sendall(request)
        found = b""
        try:
            while part := line.recv(65_536):
                found += part
        except ConnectionResetError:
            pass
    return found


def status(port: int, request: bytes) -> int:
    answer = said(port, request)
    return int(answer.split(b" ", 2)[1]) if answer else 0


def healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/health")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status == 200


def get(path: bytes, *headers: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    lines = b"".join(one + b"\r\n" for one in (*headers, b"Connection: close"))
    return method + b" " + path + b" HTTP/" + version + b"\r\n" + lines + b"\r\n"


def post(headers: bytes, body: bytes = BODY) -> bytes:
    length = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    return b"POST /v1/classify HTTP/1.1\r\n" + headers + length + body


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (get(b"/health", b"Host: 127.0.0.1"), 200),
        (get(b"/health", b"Host: LOCALHOST:8765"), 200),
        (get(b"/health?x=1", b"Host: localhost"), 200),
        (get(b"/health", b"Host: attacker.example"), 400),
        (get(b"/health", b"Host: 127.0.0.1.attacker.example"), 400),
        (get(b"/health", b"Host: [::1]:8765"), 400),
        (get(b"/health", b"Host: [::ffff:127.0.0.1]"), 400),
        (get(b"/health", b"Host: user@127.0.0.1"), 400),
        (get(b"/health", b"Host: "), 400),
        (get(b"/health"), 400),
        (get(b"/health", version=b"1.0"), 400),
        (get(b"/health", b"Host: localhost", b"Host: attacker.example"), 400),
        (get(b"/health", b"Host: attacker.example", b"Host: localhost"), 400),
        (get(b"http://attacker.example/health", b"Host: localhost"), 404),
        (get(b"//health", b"Host: localhost"), 404),
        (get(b"/health/../health", b"Host: localhost"), 404),
        (get(b"/health", b"Host: localhost", method=b"HEAD"), 405),
        (get(b"/v1/classify", b"Host: localhost", method=b"OPTIONS"), 405),
        (get(b"/health", b"Host: localhost", b"X: " + b"x" * 200_000), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (post(HOST + JSON), 200),
        (post(HOST + b"content-type: Application/JSON; charset=utf-8\r\n"), 200),
        (post(HOST + b"Content-Type: text/plain\r\n"), 415),
        (post(HOST), 415),
        (post(HOST + JSON, b'{"texts": ["\\ud800"]}'), 422),
        (post(HOST + JSON, b'{"texts": ["x"], "\\ud800": 1}'), 422),
        (post(HOST + JSON, b'{"texts": ["\\u0000", "", " ", "\\ufeff\\u202e"]}'), 200),
        (post(HOST + JSON, b"[" * 100_000), 422),
        (post(HOST + JSON + b"Content-Length: 3\r\n"), 400),
        (post(HOST + JSON + b"Content-Length: -1\r\n"), 400),
        (post(HOST + JSON + b"Upgrade: websocket\r\nConnection: Upgrade\r\n"), 200),
    ],
)
def test_what_is_answered_to_odd_requests(port: int, request_: bytes, expected: int) -> None:
    assert status(port, request_) == expected
    assert healthy(port)


def test_no_answer_lets_a_web_page_read_it(port: int) -> None:
    answer = said(port, get(b"/health", b"Host: localhost", b"Origin: https://attacker.example"))
    assert b"access-control" not in answer.lower()


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    lines = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in chunks)
    told = b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    return b"POST /v1/classify HTTP/1.1\r\n" + HOST + JSON + told + lines + end


def test_a_body_in_chunks_has_the_same_limits(port: int) -> None:
    assert status(port, chunked(*(bytes([one]) for one in BODY))) == 200
    assert status(port, chunked(b" " * 600_000, b" " * 600_000)) == 413
    assert status(port, chunked(end=b"zz\r\n")) in (0, 400)
    assert healthy(port)


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /health HT",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ",
        b"POST /v1/classify HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 100\r\n\r\n{",
        b"POST /v1/classify HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n2;",
        b"POST /other HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000\r\n\r\n",
    ],
)
def test_who_does_not_finish_a_request_is_cut_off(port: int, begun: bytes) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.sendall(begun)
        with pytest.raises(ConnectionError):
            drip(line)
    assert time.monotonic() - began < 5
    assert healthy(port)


def test_who_does_not_take_answers_is_cut_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "health", lambda self: {"status": "ok", "much": "x" * 500_000})
    request = get(b"/health", b"Host: localhost").replace(b"Connection: close\r\n", b"")
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.sendall(request * 200)
        with pytest.raises(ConnectionError):
            drip(line)
    assert time.monotonic() - began < 6
    assert healthy(port)


def drip(line: socket.socket) -> None:
    """A byte at a time, each in time, for 5 s."""
    for _ in range(100):
        line.sendall(b"x")
        time.sleep(0.05)


def test_who_keeps_a_connection_and_asks_again_is_not(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.connect()
    line = connection.sock
    for _ in range(15):
        connection.request("POST", "/v1/classify", BODY, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read()
        time.sleep(0.1)
    assert connection.sock is line
    connection.close()


def test_many_connections_neither_pile_up_nor_stay(port: int) -> None:
    """Without a bound they would take every file that the process may open."""
    with ExitStack() as stack:
        lines = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            for _ in range(60)
        ]
        time.sleep(0.2)
        closed = 0
        for line in lines:
            line.setblocking(False)
            try:
                closed += line.recv(1) == b""
            except BlockingIOError:
                pass
            except ConnectionResetError:
                closed += 1
        assert closed == 52
        time.sleep(1.0)
        assert healthy(port)


def test_half_a_request_does_not_keep_the_process_from_ending(
    kiosk: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "END_S", 1)
    with listening(kiosk) as (server, thread):
        port = server.servers[0].sockets[0].getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
            line.sendall(b"POST /v1/classify HTTP/1.1\r\n" + HOST + JSON)
            line.sendall(b"Content-Length: 100\r\n\r\n{")
            time.sleep(0.2)
            server.should_exit = True
            thread.join(6)
            assert not thread.is_alive()


def test_clients_that_leave_leave_no_work_without_end(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer is computed to its end, whoever has left: the queue of them is bounded."""
    go_on, asked = threading.Event(), []
    real = Service.classify

    def slow(self: Service, texts: Sequence[str]) -> Answer:
        asked.append(texts)
        go_on.wait(30)
        return real(self, texts)

    monkeypatch.setattr(Service, "classify", slow)
    for _ in range(40):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
            line.sendall(post(HOST + JSON))
            time.sleep(0.02)
    go_on.set()
    time.sleep(0.5)
    assert len(asked) <= 9
    assert healthy(port)


def test_a_client_that_leaves_costs_nothing_but_its_answer(port: int) -> None:
    for sent in (post(HOST + JSON)[:-5], post(HOST + JSON), b"GET /hea"):
        for _ in range(12):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
                line.sendall(sent)
    time.sleep(0.3)
    assert healthy(port)
