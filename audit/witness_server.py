"""A witness on the network: ``POST /add-checkpoint`` of C2SP tlog-witness, and nothing else. (P-8.14)

Plain HTTP: what is asked is signed and what is answered is signed. Put a proxy with TLS in front of it
where addresses are to stay private.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from audit.witness import Witness
from protocol.errors import FedgeError
from protocol.transparency.witness import CONFLICT, MOST_BYTES, Cosigned

PATH = "/add-checkpoint"
SIZE_TYPE = "text/x.tlog.size"
TEXT_TYPE = "text/plain; charset=utf-8"
PATIENCE_S = 10.0


class WitnessServer(ThreadingHTTPServer):
    """Serves until ``shutdown``; ``report`` gets a line about every refusal and failure."""

    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], witness: Witness, report: Callable[[str], None]
    ) -> None:
        """Bind ``address``; port 0 takes a free one. Raises OSError."""
        self.witness, self.report = witness, report
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without asking the name service who we are, as http.server does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that went away is no news."""
        self.report("a connection broke")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "fedge-witness", ""
    timeout = PATIENCE_S  # of one read or write, so that nobody holds a thread for ever
    wbufsize = -1  # headers and body leave in one packet
    server: WitnessServer

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        self.close_connection = True  # unless the body was read
        if not length.isascii() or not length.isdigit():
            self._answer(411, "a request needs its length\n")
        elif int(length) > MOST_BYTES:
            self._answer(413, f"more than {MOST_BYTES} bytes\n")
        else:
            body = self.rfile.read(int(length))
            self.close_connection = self.headers.get("Connection", "").lower() == "close"
            if self.path != PATH:
                self._answer(404, f"there is only {PATH}\n")
            else:
                self._add(body)

    def _add(self, body: bytes) -> None:
        try:
            found = self.server.witness.add(body)
        except FedgeError as error:
            self.server.report(str(error))
            self._answer(500, "this witness has a fault\n")
            return
        if isinstance(found, Cosigned):
            self._answer(200, found.line)
        else:
            self.server.report(f"refused with {found.status}: {found.why}")
            if found.status == CONFLICT and found.size is not None:
                self._answer(CONFLICT, f"{found.size}\n", SIZE_TYPE)
            else:
                self._answer(found.status, f"{found.why}\n")

    def _answer(self, status: int, text: str, kind: str = TEXT_TYPE) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass  # addresses of those who ask are not kept
