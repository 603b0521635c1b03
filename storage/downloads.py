"""Bytes over HTTP from servers that are trusted for nothing: within one deadline, from any offset on.

No server can hold the one who asks for ever, fill a disk or a memory, or lead to where only this machine
reaches. What comes is checked by whoever asked.
"""

from __future__ import annotations

import errno
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from protocol.addresses import shown_address
from protocol.web_page import PEEK, page_fault, redirect_fault

SILENCE_S = 30.0  # without a byte
PIECE = 65_536
AGENT = "fedge"


class CutError(Exception):
    """A file that is not to be had, or not all of it; the text says why, ``status`` what the server said."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class PageError(CutError):
    """A web page, or the way to one, in place of a file: a network's login, or a wrong address."""


class LateError(CutError):
    """The deadline has passed."""


class Reader:
    """Bytes of one file until ``deadline``; an error of the transport is a :class:`CutError`."""

    def __init__(self, stream: Any, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, length: int) -> bytes:
        """Exactly ``length`` bytes. Raises CutError when the mirror ends before."""
        data = self.at_most(length)
        if len(data) < length:
            raise CutError(f"ended {length - len(data)} bytes early")
        return data

    def rest(self, limit: int) -> bytes:
        """All that is left. Raises CutError for more than ``limit`` bytes."""
        data = self.at_most(limit + 1)
        if len(data) > limit:
            raise CutError(f"is longer than {limit} bytes")
        self._verify_end()
        return data

    def skip(self, length: int) -> None:
        """Pass over bytes that are here already."""
        while length:
            length -= len(self.read(min(length, 2**20)))

    def pieces(self) -> Iterator[bytes]:
        """All that is left, as it comes."""
        while data := self._some(PIECE, at_once=True):
            yield data
        self._verify_end()

    def at_most(self, length: int) -> bytes:
        """``length`` bytes, or fewer at the end."""
        return self._some(length)

    def _some(self, length: int, *, at_once: bool = False) -> bytes:
        read = self._stream.read1 if at_once else self._stream.read
        try:
            data = bytes(read(length))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _late(self._deadline) or CutError(f"stopped: {network_fault(error)}") from None
        if late := _late(self._deadline):
            raise late
        return data

    def _verify_end(self) -> None:
        if missing := getattr(self._stream, "length", 0):  # of an HTTP response, by its header
            raise CutError(f"ended {missing} bytes early")


@contextmanager
def opened(
    url: str,
    *,
    deadline: float,
    offset: int = 0,
    length: int | None = None,
    silence_s: float = SILENCE_S,
    direct: bool = False,
    pages: bool = False,
) -> Iterator[Reader]:
    """A reader of the file at ``url`` from byte ``offset`` on, by a range where the server knows them.

    Args:
        url: http or https, checked by the caller.
        deadline: monotonic time.
        offset: bytes that are here already.
        length: bytes that are wanted; more may come.
        silence_s: seconds without a byte.
        direct: without the environment's proxies, and without following redirects.
        pages: a web page is a file like any other.

    Raises CutError and its kinds; so does the reader.
    """
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    if offset or length is not None:
        headers["Range"] = f"bytes={offset}-{'' if length is None else offset + length - 1}"
    if late := _late(deadline):
        raise late
    left = deadline - time.monotonic()
    with _Watch(left) as watch:
        try:
            request = urllib.request.Request(url, headers=headers)  # noqa: S310
            response = _opener(watch, direct=direct).open(request, timeout=min(silence_s, left))
        except (OSError, http.client.HTTPException, ValueError) as error:
            status = error.code if isinstance(error, urllib.error.HTTPError) else 0
            raise _late(deadline) or CutError(network_fault(error), status) from None
        with response:
            reader = Reader(response, deadline)
            _verify_answer(response, offset, pages=pages)
            if response.status == 200:
                reader.skip(offset)  # a server without ranges
            yield reader


def _verify_answer(response: Any, offset: int, *, pages: bool) -> None:
    status, headers = response.status, response.headers
    fault = redirect_fault(status, headers.get("Location"))
    if status == 200 and not pages:
        try:
            head = response.peek(PEEK)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise CutError(f"stopped: {network_fault(error)}") from None
        fault = page_fault(status, headers.get("Content-Type"), head)
    if fault:
        raise PageError(f"{shown_address(response.url)}: {fault}", status)
    if status not in (200, 206):
        raise CutError(f"answers with status {status}", status)
    place = str(headers.get("Content-Range", "")).replace("=", " ")
    if status == 206 and not place.startswith(f"bytes {offset}-"):
        raise CutError("answers with another range than was asked for")


def _late(deadline: float) -> LateError | None:
    return LateError("the time is over") if time.monotonic() >= deadline else None


def _reach(address: str) -> int:
    """4 anywhere, 3 a private network, 2 this cable, 1 this machine."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_loopback or ip.is_unspecified:
        return 1
    if ip.is_link_local:
        return 2
    return 3 if ip.is_private else 4


class _Watch:
    """Cuts connections when the time is over: a server may send a byte now and then for ever.

    And those to which a redirect leads from further off: a mirror on the internet does not make this
    machine ask what only this machine can reach.
    """

    def __init__(self, seconds: float) -> None:
        self._sockets: list[socket.socket] = []
        self._reach = 0  # of the machine that was asked first
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def connection(self, kind: Any, host: str, **options: Any) -> http.client.HTTPConnection:
        """A connection that is watched from the moment it is made."""
        made: http.client.HTTPConnection = kind(host, **options)
        connect = made.connect

        def watched() -> None:
            connect()
            self._sockets.append(made.sock)
            reach = _reach(made.sock.getpeername()[0])
            self._reach = self._reach or reach
            if reach < self._reach:
                made.close()
                raise PermissionError(errno.EACCES, "redirects to a nearer network")

        made.connect = watched  # type: ignore[method-assign]
        return made

    def _cut(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> _Watch:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


class _Plain(urllib.request.HTTPHandler):
    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._make = partial(watch.connection, http.client.HTTPConnection)

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._make, req)


class _Tls(urllib.request.HTTPSHandler):
    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._make = partial(watch.connection, http.client.HTTPSConnection)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        context = ssl.create_default_context()
        return self.do_open(self._make, req, context=context)


def _opener(watch: _Watch, *, direct: bool) -> urllib.request.OpenerDirector:
    """Without the handlers for files, FTP and data that urllib has by default."""
    handlers: list[Any] = [urllib.request.UnknownHandler(), _Plain(watch), _Tls(watch)]
    if not direct:
        handlers += [
            urllib.request.ProxyHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
        ]
    opener = urllib.request.OpenerDirector()
    for handler in handlers:
        opener.add_handler(handler)
    return opener


def network_fault(error: Exception) -> str:
    """Why a request got no answer, without a path or an address."""
    if isinstance(error, urllib.error.HTTPError):
        return f"answers with status {error.code}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return "no byte for too long"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return type(error).__name__
