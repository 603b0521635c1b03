"""Bytes from a repository: a folder or an HTTP server, within one deadline, resumable. (P-9.8)

Nothing is believed here; sizes and times are bounded, so that no server can fill a disk or hold the
agent for ever.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient.fetcher import FetcherInterface

from protocol.addresses import shown_address
from protocol.web_page import PEEK, page_fault, redirect_fault
from storage.regular import open_regular

CHUNK = 65_536
SILENCE_S = 30.0  # without a byte
FOLDER = "folder:///"


class WebPageError(DownloadError):
    """A page, or the way to one, in place of a file: a network's login, or a wrong address."""


class Fetcher(FetcherInterface):
    """Reads ``repository``, a folder or an http(s) address, until ``deadline_s`` from now.

    Redirects are not followed, content codings not asked for.
    """

    def __init__(self, repository: str, *, deadline_s: float) -> None:
        self._until = time.monotonic() + deadline_s
        remote = repository.startswith(("http://", "https://"))
        self._folder = None if remote else Path(repository)
        prefix = repository.rstrip("/") + "/" if remote else FOLDER
        self.metadata_url, self.targets_url = f"{prefix}metadata/", f"{prefix}targets/"

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self.chunks(url)

    def chunks(self, url: str, start: int = 0) -> Iterator[bytes]:
        """The bytes from ``start`` on.

        Raises DownloadError, DownloadHTTPError, WebPageError, SlowRetrievalError.
        """
        source = (
            self._from_http(url, start) if self._folder is None else self._from_file(url, start)
        )
        try:
            for chunk in source:
                self._left()
                yield chunk
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._left()  # a connection cut at the deadline looks like any other
            fault = error.strerror if isinstance(error, OSError) else None  # no path, no address
            raise DownloadError(f"{url}: {fault or type(error).__name__}") from None

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise SlowRetrievalError("the deadline for the whole update has passed")
        return left

    def _from_file(self, url: str, start: int) -> Iterator[bytes]:
        parts = unquote(url.removeprefix(FOLDER)).split("/")
        if any(part in ("", ".", "..") or "\x00" in part for part in parts):
            raise DownloadHTTPError(f"{url}: no name of a file", 404)
        assert self._folder is not None
        try:
            with open_regular(self._folder.joinpath(*parts)) as file:
                file.seek(start)
                while chunk := file.read(CHUNK):
                    yield chunk
        except FileNotFoundError:
            raise DownloadHTTPError(f"{url}: not there", 404) from None

    def _from_http(self, url: str, start: int) -> Iterator[bytes]:
        at = urlsplit(url)
        headers = {"Accept-Encoding": "identity", "User-Agent": "fedge-edge"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with self._connected(at.scheme, at.hostname or "", at.port) as connection:
            connection.request("GET", at.path or "/", headers=headers)
            answer = connection.getresponse()
            fault = redirect_fault(answer.status, answer.getheader("Location"))
            if answer.status in (200, 206) and not start:
                kind = answer.getheader("Content-Type")
                fault = page_fault(answer.status, kind, answer.peek(PEEK))
            if fault:
                raise WebPageError(f"{shown_address(url)}: {fault}")
            if answer.status not in (200, 206):
                raise DownloadHTTPError(f"{url}: HTTP {answer.status}", answer.status)
            if answer.status == 206 and not _starts_at(answer.getheader("Content-Range"), start):
                raise DownloadError(f"{url}: another range than was asked for")
            skip = start if answer.status == 200 else 0
            while chunk := answer.read1(CHUNK):
                wanted = chunk[skip:]
                skip -= len(chunk) - len(wanted)
                if wanted:
                    yield wanted
            self._left()  # a line that was cut ends like any other
            if answer.length:
                raise DownloadError(f"{url}: broke off")

    @contextmanager
    def _connected(
        self, scheme: str, host: str, port: int | None
    ) -> Iterator[http.client.HTTPConnection]:
        timeout = min(SILENCE_S, self._left())
        connection = (
            http.client.HTTPSConnection(
                host, port, timeout=timeout, context=ssl.create_default_context()
            )
            if scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=timeout)
        )
        connection.connect()
        left = max(0.0, self._until - time.monotonic())
        # A server may drip headers for ever, each byte in time: cut the line at the deadline.
        sock = connection.sock
        cut = threading.Timer(left, _cut, (sock,))
        cut.daemon = True
        cut.start()
        try:
            yield connection
        finally:
            cut.cancel()
            connection.close()


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _starts_at(header: str | None, start: int) -> bool:
    return header is not None and header.replace("=", " ").startswith(f"bytes {start}-")
