"""Delivery over HTTP: a static server, and servers that drip, redirect or lie about ranges."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from edge_runtime.fetching import Fetcher
from edge_runtime.settings import Device
from protocol.errors import DeliveryError
from tests.delivery_world import World, in_use, refused, update


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class Ranged(Quiet):
    """Answers `Range: bytes=n-`, and notes it; ``lie`` moves the start."""

    asked: ClassVar[list[str]] = []
    lie = 0

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        if wanted is None:
            return super().do_GET()
        self.asked.append(wanted)
        data = Path(self.translate_path(self.path)).read_bytes()
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206)
        told = f"bytes {start + self.lie}-{len(data) - 1}/{len(data)}"
        self.send_header("Content-Range", told)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:])
        return None


class Elsewhere(Quiet):
    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/other" + self.path)
        self.end_headers()


@contextmanager
def serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def dripping(first: bytes) -> Iterator[str]:
    """Sends ``first``, then a byte every 20 ms for ever."""
    listening = socket.create_server(("127.0.0.1", 0))

    def drip(to: socket.socket) -> None:
        with to:
            try:
                to.recv(4096)
                to.sendall(first)
                while True:
                    to.sendall(b"x")
                    time.sleep(0.02)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                to, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(to,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()


def at(world: World, url: str, **fields: Any) -> Device:
    return world.device(repository=url, **fields)


def half_loaded(world: World, device: Device) -> int:
    offer = world.publish()
    file = offer.files.adapter
    data = (world.repository.folder / "targets/canary" / f"{file.sha256}.{file.name}").read_bytes()
    part = device.store / "staging" / offer.id / "adapter.onnx_adapter"
    part.parent.mkdir(parents=True)
    part.write_bytes(data[: len(data) // 2])
    return len(data) // 2


@pytest.mark.parametrize("handler", [Quiet, Ranged])
def test_a_static_server_is_enough(world: World, handler: type[Quiet]) -> None:
    """With or without ranges: what was loaded already is not thrown away, or skipped over."""
    Ranged.asked.clear()
    with serving(partial(handler, directory=str(world.repository.folder))) as url:
        kiosk = at(world, url)
        half = half_loaded(world, kiosk)
        update(kiosk)
    assert in_use(kiosk) == 1
    assert Ranged.asked == ([f"bytes={half}-"] if handler is Ranged else [])


def test_a_server_that_answers_another_range(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranged, "lie", 1)
    with serving(partial(Ranged, directory=str(world.repository.folder))) as url:
        kiosk = at(world, url)
        half_loaded(world, kiosk)
        with refused("download.failed"):
            update(kiosk)


def test_redirects_are_not_followed(world: World) -> None:
    world.publish()
    handler = partial(Elsewhere, directory=str(world.repository.folder))
    with serving(handler) as url, refused("download.webpage"):
        update(at(world, url))


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
        b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n",
    ],
)
def test_a_server_that_drips_is_cut_off_at_the_deadline(world: World, first: bytes) -> None:
    world.publish()
    with dripping(first) as url:
        began = time.monotonic()
        with refused("download.deadline"):
            update(at(world, url, deadline_s=0.5))
    assert time.monotonic() - began < 5


def test_a_server_that_is_not_there(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with refused("download.failed"):
        update(at(world, f"http://127.0.0.1:{port}"))


@pytest.mark.parametrize("name", ["../secret", "a/%2e%2e/%2e%2e/secret", "%00", "a//b", ""])
def test_a_folder_is_not_left_by_odd_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "repo").mkdir()
    fetcher = Fetcher(str(tmp_path / "repo"), deadline_s=10)
    with pytest.raises(Exception, match="no name of a file"):
        list(fetcher.chunks(f"{fetcher.targets_url}{name}".replace("targets/", "", 1)))


def test_a_pipe_in_a_folder_does_not_hold_the_agent(tmp_path: Path) -> None:
    """A stranger's disk can hold one; opening it would wait for a writer, past every deadline."""
    (tmp_path / "metadata").mkdir()
    os.mkfifo(tmp_path / "metadata/timestamp.json")
    fetcher = Fetcher(str(tmp_path), deadline_s=10)
    with pytest.raises(Exception, match="not a regular file"):
        list(fetcher.chunks(f"{fetcher.metadata_url}timestamp.json"))


@pytest.mark.parametrize(
    "address", ["http://h:x", "http://h:99999", "http://[::1", "http://\u00fc..de"]
)
def test_an_address_that_is_none_is_a_failed_download(world: World, address: str) -> None:
    with refused("download.failed"):
        update(at(world, "http://h.example").model_copy(update={"repository": address}))


class Login(Quiet):
    """A network that wants a login: its page, with status 200, whatever is asked for."""

    def do_GET(self) -> None:
        body = b"<!DOCTYPE html><title>Guest network</title>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_login_page_and_a_wrong_path_get_their_own_advice(world: World) -> None:
    world.publish()
    for handler, code, advice in (
        (Login, "download.webpage", "sign in where this network asks for it"),
        (Elsewhere, "download.webpage", "or correct the address"),
        (partial(Quiet, directory=str(world.folder)), "download.failed", "correct `repository`"),
    ):
        with serving(handler) as url:
            device = world.device(repository=url)
            with pytest.raises(DeliveryError) as caught:
                update(device)
        assert caught.value.code == code
        assert advice in caught.value.remedy
        assert "evidence" not in caught.value.remedy
