"""An HTTP proxy that knows CONNECT and nothing else: names that nobody else knows lead to loopback."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class ConnectProxy:
    """Tunnels to ``hosts``, each at the port asked for on loopback; ``asked`` is everything it was asked."""

    def __init__(self, hosts: set[str]) -> None:
        self._hosts, self.asked = hosts, list[str]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> ConnectProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._tunnel, args=(near,), daemon=True).start()

    def _tunnel(self, near: socket.socket) -> None:
        with suppress(OSError), near:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := near.recv(4096)):
                    return
                head += data
            method, target = head.decode("latin-1").split(" ")[:2]
            self.asked.append(target)
            host, _, port = target.rpartition(":")
            if method != "CONNECT" or host not in self._hosts:
                near.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", int(port))) as far:
                near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=_copy, args=(far, near), daemon=True)
                back.start()
                _copy(near, far)
                back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
