"""`fedge edge serve-text` against requests that no client writes, and as a process."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from edge_runtime import http_server
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.edge_adapter import write_edge_adapter
from protocol.errors import ArtefactError, DataError
from tests.integration.test_device_http import drip, said
from tests.text_server import HI, OTHER, SEEDS, Serving, alone, serving_texts, tiny_base, until
from tests.tiny_decoder import lora, write_tiny_decoder
from tests.unit.fedge.test_command_line import ROOT

CHAT: dict[str, Any] = {"model": "a", "messages": HI, "temperature": 0}
HEAD = b"Host: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> DecoderBase:
    return tiny_base(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def served(base: DecoderBase) -> Iterator[Serving]:
    with pytest.MonkeyPatch.context() as patch, serving_texts(base) as serving:
        patch.setattr(http_server, "REQUEST_S", 0.3)
        yield serving


def request(body: bytes, *, head: bytes = HEAD, path: bytes = b"/v1/chat/completions") -> bytes:
    length = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    return b"POST " + path + b" HTTP/1.1\r\n" + head + length + body


def answered(port: int, sent: bytes) -> tuple[int, dict[str, Any]]:
    """Status and document."""
    head, _, body = said(port, sent).partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    return int(head.split(b" ", 2)[1]), json.loads(body)


def changed(**other: Any) -> bytes:
    return json.dumps({**CHAT, **other}).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in CHAT.items() if key != name}).encode()


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"", None, "invalid_json"),
        (b"{", None, "invalid_json"),
        (b"[]", None, "invalid_json"),
        (b"null", None, "invalid_json"),
        (b"\xff\xfe", None, "invalid_json"),
        (b"[" * 100_000, None, "invalid_json"),
        (b'{"model": "a", "model": "b"}', None, "invalid_json"),
        (b'{"temperature": NaN}', None, "invalid_json"),
        (b'{"seed": ' + b"9" * 5000 + b"}", None, "invalid_json"),
        (b'{"model": "\\ud800"}', None, "invalid_json"),
        (without("model"), "model", "missing_required_parameter"),
        (without("messages"), "messages", "missing_required_parameter"),
        (changed(model=None), "model", "invalid_value"),
        (changed(model=7), "model", "invalid_value"),
        (changed(model=""), "model", "invalid_value"),
        (changed(messages="hi"), "messages", "invalid_value"),
        (changed(messages=["hi"]), "messages", "invalid_value"),
        (changed(messages=[{"role": 1, "content": "x"}]), "messages", "invalid_value"),
        (changed(messages=[{"role": "user", "content": 1}]), "messages", "invalid_value"),
        (changed(messages=[{"role": "user", "content": [1]}]), "messages", "invalid_value"),
        (changed(messages=HI * 1001), "messages", "invalid_value"),
        (changed(temperature="0"), "temperature", "invalid_value"),
        (changed(temperature=True), "temperature", "invalid_value"),
        (changed(max_tokens=1.5), "max_tokens", "invalid_value"),
        (changed(max_tokens=10**19), "max_tokens", "invalid_value"),
        (changed(stop=[1]), "stop", "invalid_value"),
        (changed(stop={"a": 1}), "stop", "invalid_value"),
        (changed(stop="x" * 501), "stop", "invalid_value"),
        (changed(stream="yes"), "stream", "invalid_value"),
        (changed(stream=True, stream_options={"x": 1}), "stream_options", "invalid_value"),
        (changed(logprobs=3), "logprobs", "invalid_value"),
        (changed(n=[1]), "n", "unsupported_parameter"),
        (changed(**{"\u0000": 1}), "\\x00", None),
        (changed(**{"x" * 5000: 1}), None, "unknown_parameter"),
    ],
)  # fmt: skip
def test_odd_bodies(served: Serving, body: bytes, param: str | None, code: str | None) -> None:
    status, document = answered(served.port, request(body))
    error = document["error"]
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert code is None or error["code"] == code
    assert 0 < len(error["message"]) < 500
    if code not in ("unknown_parameter", None):
        assert error["param"] == param
    lives(served)


def lives(served: Serving) -> None:
    status, document = answered(served.port, request(json.dumps(CHAT | {"max_tokens": 1}).encode()))
    assert (status, document["usage"]["completion_tokens"]) == (200, 1)
    assert until(lambda: served.service.turns.places == 0)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (request(b"{}", head=b"Host: localhost\r\n"), 415),
        (request(b"{}", head=b"Host: localhost\r\nContent-Type: text/plain\r\n"), 415),
        (request(b"{}", head=HEAD.replace(b"localhost", b"attacker.example")), 400),
        (request(b"{}", path=b"/v1/embeddings"), 404),
        (request(b"{}", path=b"/v1/chat/completions/"), 404),
        (request(b"{}", path=b"/v1/models"), 405),
        (request(b"{}").replace(b"POST", b"GET"), 405),
        (request(b"{}").replace(b"POST", b"OPTIONS"), 405),
        (request(b"", path=b"/v1/modelsx").replace(b"POST", b"GET"), 404),
        (request(b"", path=b"/v1/models/../x").replace(b"POST", b"GET"), 404),
        (request(b"", path=b"/v1/models/a%2Fb").replace(b"POST", b"GET"), 404),
        (request(b"", path=b"/v1/models/").replace(b"POST", b"GET"), 200),
        (request(b"", path=b"/health").replace(b"POST", b"GET"), 200),
        (request(b" " * 1_100_000), 413),
        (request(changed(messages=[{"role": "user", "content": "a" * 900_000}])), 400),
    ],
)
def test_odd_requests(served: Serving, sent: bytes, expected: int) -> None:
    status, document = answered(served.port, sent)
    assert status == expected
    assert expected == 200 or document["error"]["message"]
    lives(served)


@pytest.mark.parametrize(
    "head",
    [b"X: " + b"x" * 200_000 + b"\r\n", b"Content-Length: 3\r\n", b"X\x00: 1\r\n"],
)
def test_heads_that_are_too_large_or_wrong(served: Serving, head: bytes) -> None:
    assert said(served.port, request(b"{}", head=HEAD + head)).startswith(b"HTTP/1.1 400")
    lives(served)


def test_who_does_not_finish_a_request_is_cut_off(served: Serving) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as line:
        line.sendall(request(b"x" * 1000)[:-900])
        with pytest.raises(ConnectionError):
            drip(line)
    lives(served)


def test_who_does_not_read_keeps_no_place(served: Serving) -> None:
    asked = request(changed(stream=True, logprobs=True, top_logprobs=20))
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        line.connect(("127.0.0.1", served.port))
        line.sendall(asked)
        assert b"200 OK" in line.recv(100)  # and no more of it
        assert until(lambda: served.service.turns.places == 0)
    lives(served)


def test_events_are_events(served: Serving) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.request(
        "POST", "/v1/chat/completions", changed(stream=True), {"Content-Type": "application/json"}
    )
    answer = connection.getresponse()
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = answer.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    documents = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert {document["object"] for document in documents} == {"chat.completion.chunk"}
    assert len({document["id"] for document in documents}) == 1
    assert [d["choices"][0]["finish_reason"] for d in documents][-2:] == [None, "length"]
    connection.close()


def test_a_base_without_a_template_knows_no_chats(tmp_path: Path) -> None:
    plain = DecoderBase.open(write_tiny_decoder(tmp_path / "plain", template=None), threads=1)
    with serving_texts(plain) as served:
        with pytest.raises(openai.BadRequestError) as caught:
            served.client().chat.completions.create(model="plain", messages=HI)
        assert "/v1/completions" in caught.value.message
        assert str(tmp_path) not in caught.value.message
        assert served.client().completions.create(model="plain", prompt="a").choices


@contextmanager
def process(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "fedge", "edge", "serve-text", *map(str, arguments)]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def test_a_process_that_is_hung_up_loads_its_adapters_again(
    base: DecoderBase, tmp_path: Path
) -> None:
    good, other = tmp_path / "good.onnx_adapter", tmp_path / "other.onnx_adapter"
    write_edge_adapter(lora(SEEDS["a"]), good)
    write_edge_adapter(lora(SEEDS["b"]), other)
    options = ("--base", base.folder, "--adapter", f"good={good}", "--adapter", f"x.y={other}")
    with process(*options, "--port", 0, "--threads", 1, "--json") as running:
        assert running.stdout is not None
        assert running.stderr is not None
        begun = json.loads(running.stdout.readline())
        assert begun["models"] == ["tiny", "good", "x.y"]
        client = openai.OpenAI(base_url=f"{begun['url']}/v1", api_key="-", max_retries=0)

        def says() -> str | None:
            answer = client.chat.completions.create(model="good", messages=HI, temperature=0)
            return answer.choices[0].message.content

        assert says() == alone(base, SEEDS["a"])
        write_edge_adapter(lora(OTHER), good)
        other.write_bytes(b"x")
        running.send_signal(signal.SIGHUP)
        lines = [running.stderr.readline() for _ in range(2)]
        assert lines[0] == "adapter good is loaded again\n"
        assert lines[1].startswith("adapter x.y stays as it was: its file")
        assert says() == alone(base, OTHER)
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=20)
        assert (out, err, running.returncode) == ("", "", 0)


@pytest.mark.parametrize(
    ("adapters", "error", "words"),
    [
        (["a.onnx_adapter"], DataError, "NAME=FILE"),
        (["a=x", "a=y"], DataError, "twice"),
        (["a/b={good}"], DataError, "cannot be called"),
        (["tiny={good}"], DataError, "cannot be called"),
        (["a=nowhere.onnx_adapter"], ArtefactError, "nowhere"),
    ],
)
def test_what_cannot_be_served_is_said_at_the_start(
    base: DecoderBase, tmp_path: Path, adapters: list[str], error: type[Any], words: str
) -> None:
    from edge_runtime.decoder.http.commands import serve_text

    write_edge_adapter(lora(1), good := tmp_path / "good.onnx_adapter")
    with pytest.raises(error, match=words):
        serve_text(base.folder, adapter=[text.format(good=good) for text in adapters], threads=1)


def test_texts_that_are_written_at_the_end_are_cut_with_an_error(base: DecoderBase) -> None:
    with serving_texts(base) as served, served.slow_neighbour(0.1):
        stream = served.client().chat.completions.create(**CHAT, stream=True)
        next(iter(stream))
        served.service.end()
        with pytest.raises(openai.APIError, match="the server ends"):
            list(stream)


def test_the_end_does_not_wait_for_long_texts(
    base: DecoderBase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http_server, "END_S", 1)
    with serving_texts(base) as served, served.slow_neighbour(0.2):
        stream = served.client().chat.completions.create(**CHAT, stream=True)
        next(iter(stream))
        began = time.monotonic()
        served.server.should_exit = True
        with pytest.raises(openai.APIError, match="the server ends"):
            list(stream)
        assert time.monotonic() - began < 4  # the text would take 9 s
    assert "Traceback" not in caplog.text
    assert not any(record.exc_info for record in caplog.records)
