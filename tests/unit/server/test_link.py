"""Connections to a real server: who asks for nothing is left, who asks is answered however long that takes."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import uvicorn

from server import link
from server.link import Impatient


async def slow(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(0.8)
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    )
    await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def serving() -> Iterator[tuple[str, int]]:
    config = uvicorn.Config(slow, http=Impatient, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("start", [b"", b"POST /x HTTP/1.1\r\nHost: a\r\n"])
def test_who_asks_for_nothing_is_left(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "HEADERS_S", 0.4)
    with serving() as address, socket.create_connection(address, timeout=5) as stranger:
        stranger.sendall(start)
        began = time.monotonic()
        with suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
        assert time.monotonic() - began < 3


def test_who_has_asked_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "HEADERS_S", 0.4)
    with serving() as address, socket.create_connection(address, timeout=5) as node:
        for _ in range(2):
            node.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n12")
            time.sleep(0.6)  # a slow link
            node.sendall(b"34")
            assert node.recv(4096).startswith(b"HTTP/1.1 200")
