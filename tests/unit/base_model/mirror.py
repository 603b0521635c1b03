"""An HTTP server of a folder that can misbehave in every way a test asks for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Mirror:
    """Serves ``folder`` with ranges. ``asked`` lists (path, offset) in order.

    ``change`` alters a file's bytes by name; ``cut`` ends every answer after so many bytes of the whole
    file; ``drip`` sends a byte now and then for ever, after the headers or in their place; ``ranges`` False
    ignores them; ``redirect`` answers with another address; ``delay`` seconds before every 4 KiB.
    """

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        self.folder, self._address = folder, address
        self.asked: list[tuple[str, int]] = []
        self.change: Callable[[str, bytes], bytes] = lambda _name, data: data
        self.cut: int | None = None
        self.drip = ""
        self.ranges = True
        self.range_lie = 0
        self.redirect = ""
        self.delay = 0.0
        self.closed = threading.Event()

    def __enter__(self) -> Mirror:
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                answer(mirror, self)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer((self._address, 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://{self._address}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()


def answer(mirror: Mirror, request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    path = mirror.folder / request.path.lstrip("/")
    if mirror.redirect:
        request.send_response(302)
        request.send_header("Location", mirror.redirect)
        request.end_headers()
        return
    if not path.is_file():
        request.send_error(404)
        return
    data = mirror.change(path.name, path.read_bytes())
    said = request.headers.get("Range") if mirror.ranges else None
    offset = int(said.removeprefix("bytes=").removesuffix("-")) if said else 0
    mirror.asked.append((request.path.lstrip("/"), offset))
    if mirror.drip == "headers":
        drip(mirror, request)
        return
    request.send_response(206 if said else 200)
    if said:
        start = offset + mirror.range_lie
        request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
    request.send_header("Content-Length", str(len(data) - offset))
    request.end_headers()
    if mirror.drip == "body":
        drip(mirror, request)
        return
    try:
        end = len(data) if mirror.cut is None else min(len(data), mirror.cut)
        for at in range(offset, end, 4096):
            mirror.closed.wait(mirror.delay)
            request.wfile.write(data[at : min(at + 4096, end)])
            request.wfile.flush()
    except OSError:
        pass  # the reader has had enough


def drip(mirror: Mirror, request: BaseHTTPRequestHandler) -> None:
    started = time.monotonic()
    try:
        while not mirror.closed.wait(0.05) and time.monotonic() < started + 30:
            request.wfile.write(b"x")
            request.wfile.flush()
    except OSError:
        pass
