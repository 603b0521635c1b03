"""Places a base is copied from: a folder, or any HTTP server of static files.

A mirror is the base's folder itself, or a folder that holds it under its fingerprint. It is trusted for
nothing: whoever reads checks what comes. (P-1.6)
"""

from __future__ import annotations

import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from protocol.addresses import shown_address, web_fault
from protocol.errors import ArtefactError
from protocol.web_page import REMEDY as WEB_PAGE
from storage import downloads
from storage.downloads import CutError, PageError, Reader
from storage.regular import open_regular


class Mirror(Protocol):
    """Where to read files from; ``name`` is what errors call it."""

    name: str

    def opened(self, path: str, *, offset: int, deadline: float) -> AbstractContextManager[Reader]:
        """A context with a reader of ``path`` from byte ``offset``; ``deadline`` is monotonic time.

        Raises CutError; so does the reader.
        """
        ...


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
            raise CutError(error.strerror or type(error).__name__) from None
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
        url = f"{self.name}/{urllib.parse.quote(path)}"
        try:
            with downloads.opened(url, offset=offset, deadline=deadline) as reader:
                yield reader
        except PageError as error:
            raise CutError(f"{error}: {WEB_PAGE}") from None
