"""Bytes from a repository: a folder or an HTTP server, within one deadline, resumable. (P-9.8)

Nothing is believed here; sizes and times are bounded, so that no server can fill a disk or hold the
agent for ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient.fetcher import FetcherInterface

from storage.downloads import PIECE, CutError, LateError, PageError, opened
from storage.regular import open_regular

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
        if self._folder is not None:
            yield from self._from_file(url, start)
            return
        try:
            with opened(url, offset=start, deadline=self._until, direct=True) as reader:
                yield from reader.pieces()
        except LateError:
            raise SlowRetrievalError("the deadline for the whole update has passed") from None
        except PageError as error:
            raise WebPageError(str(error)) from None
        except CutError as error:
            if error.status:
                raise DownloadHTTPError(f"{url}: HTTP {error.status}", error.status) from None
            raise DownloadError(f"{url}: {error}") from None

    def _from_file(self, url: str, start: int) -> Iterator[bytes]:
        parts = unquote(url.removeprefix(FOLDER)).split("/")
        if any(part in ("", ".", "..") or "\x00" in part for part in parts):
            raise DownloadHTTPError(f"{url}: no name of a file", 404)
        assert self._folder is not None
        try:
            with open_regular(self._folder.joinpath(*parts)) as file:
                file.seek(start)
                while chunk := file.read(PIECE):
                    yield chunk
        except FileNotFoundError:
            raise DownloadHTTPError(f"{url}: not there", 404) from None
        except OSError as error:
            raise DownloadError(f"{url}: {error.strerror or type(error).__name__}") from None
