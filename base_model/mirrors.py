"""Places a base is copied from: a folder, or any HTTP server of static files.

A mirror is the base's folder itself, or a folder that holds it under its fingerprint. It is trusted for
nothing: whoever reads checks what comes. (P-1.6)
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
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from protocol.addresses import shown_address, web_fault
from protocol.errors import ArtefactError
from protocol.web_page import PEEK, page_fault
from protocol.web_page import REMEDY as WEB_PAGE
from storage.regular import open_regular

SILENCE = 30.0  # seconds without a byte
AGENT = "fedge"


class CutError(Exception):
    """A mirror that cannot be reached, lacks the file, or stopped in the middle; its text says which."""


class Mirror(Protocol):
    """Where to read files from; ``name`` is what errors call it."""

    name: str

    def opened(self, path: str, *, offset: int, deadline: float) -> AbstractContextManager[Reader]:
        """A context with a reader of ``path`` from byte ``offset``; ``deadline`` is monotonic time.

        Raises CutError; so does the reader.
        """
        ...


class Reader:
    """Bytes of one file until ``deadline``; an error of the transport is a :class:`CutError`."""

    def __init__(self, stream: Any, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, length: int) -> bytes:
        """Exactly ``length`` bytes. Raises CutError when the mirror ends before."""
        data = self._some(length)
        if len(data) < length:
            raise CutError(f"ended {length - len(data)} bytes early")
        return data

    def rest(self, limit: int) -> bytes:
        """All that is left. Raises CutError for more than ``limit`` bytes."""
        data = self._some(limit + 1)
        if len(data) > limit:
            raise CutError(f"is longer than {limit} bytes")
        if missing := getattr(self._stream, "length", 0):  # of an HTTP response, by its header
            raise CutError(f"ended {missing} bytes early")
        return data

    def skip(self, length: int) -> None:
        """Pass over bytes that are here already."""
        while length:
            length -= len(self.read(min(length, 2**20)))

    def _some(self, length: int) -> bytes:
        try:
            data = bytes(self._stream.read(length))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise CutError(f"stopped: {_said(error)}") from None
        if time.monotonic() >= self._deadline:
            raise CutError("the time is over")
        return data


def mirror_at(place: str) -> Mirror:
    """A folder or a URL as a mirror. Raises ArtefactError for a URL that is none, or holds secrets."""
    if place.startswith("file://"):
        return FolderMirror(Path(urllib.request.url2pathname(place.removeprefix("file://"))))
    if "://" not in place:
        return FolderMirror(Path(place))
    if fault := web_fault(place):
        raise ArtefactError(
            f"the mirror {shown_address(place)} {fault}", "name a folder, http:// or https://"
        )
    return HttpMirror(place.rstrip("/"))


class FolderMirror:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = str(folder), folder

    @contextmanager
    def opened(self, path: str, *, offset: int, deadline: float) -> Iterator[Reader]:
        """A reader of a regular file."""
        found = self._folder / path
        try:
            opened = open_regular(found)
            file = opened.__enter__()
        except OSError as error:
            raise CutError(_said(error)) from None
        try:
            file.seek(offset)
            yield Reader(file, deadline)
        finally:
            file.close()


class HttpMirror:
    """An HTTP server; proxies as the environment says, redirects within HTTP only, never nearer."""

    def __init__(self, url: str) -> None:
        self.name = url

    @contextmanager
    def opened(self, path: str, *, offset: int, deadline: float) -> Iterator[Reader]:
        """A reader of ``path``, by a range request where the server knows them."""
        headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        request = urllib.request.Request(  # noqa: S310 the scheme was checked
            f"{self.name}/{urllib.parse.quote(path)}", headers=headers
        )
        left = deadline - time.monotonic()
        if left <= 0:
            raise CutError("the time is over")
        with _Watch(left) as watch:
            try:
                response = _opener(watch).open(request, timeout=min(SILENCE, left))
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise CutError(_said(error)) from None
            with response:
                kind, head = response.headers.get("Content-Type"), response.peek(PEEK)
                if response.status == 200 and (fault := page_fault(200, kind, head)):
                    raise CutError(f"{fault}: {WEB_PAGE}")
                reader = Reader(response, deadline)
                _go_to(offset, reader, response)
                yield reader


def _go_to(offset: int, reader: Reader, response: Any) -> None:
    if response.status == 206:
        said = str(response.headers.get("Content-Range", ""))
        if not said.startswith(f"bytes {offset}-"):
            raise CutError("answers with another range than was asked for")
    elif response.status == 200:
        reader.skip(offset)  # a server without ranges
    else:
        raise CutError(f"answers with status {response.status}")


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


def _opener(watch: _Watch) -> urllib.request.OpenerDirector:
    """Without the handlers for files, FTP and data that urllib has by default."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        _Plain(watch),
        _Tls(watch),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _said(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"answers with status {error.code}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return f"no byte for {SILENCE:g} s"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return type(error).__name__
