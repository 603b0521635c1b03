"""One file of a base on its way: what is there is checked, what is missing is asked for and checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from protocol.manifest import FileEntry
from storage.downloads import CutError, Reader

Opened = Callable[[int], AbstractContextManager[Reader]]
Tell = Callable[[int, int], None]


class WrongError(Exception):
    """Bytes that are not those of the manifest or the fingerprint; its text names the file."""


@dataclass(frozen=True, kw_only=True)
class ListedFile:
    """A file: its name, its digest and length, the digests of its pieces of ``piece`` bytes if known."""

    name: str
    entry: FileEntry
    piece: int
    digests: list[str] | None

    def length(self, offset: int) -> int:
        """Bytes of the piece that begins at ``offset``."""
        return min(self.piece, self.entry.bytes - offset)

    def fits(self, offset: int, data: bytes) -> bool:
        """Whether ``data`` is the piece at ``offset``; without digests only the whole can tell."""
        if self.digests is None:
            return True
        return hashlib.sha256(data).hexdigest() == self.digests[offset // self.piece]


def complete(path: Path, listed: ListedFile, opened: Opened, tell: Tell) -> None:
    """Fetch what ``path`` lacks of ``listed``; only pieces that fit are ever written.

    ``opened`` gives a reader from an offset, ``tell`` is told the bytes there and how many are new.
    Raises CutError (what came is kept), WrongError (what is wrong is not kept) and OSError.
    """
    if path.exists():
        if path.stat().st_nlink > 1:
            path.unlink()  # another base's file is not written to
        else:
            path.chmod(0o644)
    resumed = _attempt(path, listed, opened, tell)
    if resumed is None:
        return
    path.unlink()
    # Without digests of pieces the wrong byte may be an earlier mirror's.
    if resumed and listed.digests is None and _attempt(path, listed, opened, tell) is None:
        return
    path.unlink(missing_ok=True)
    raise WrongError(f"{listed.name}: its sha256 is not the manifest's")


def _attempt(path: Path, listed: ListedFile, opened: Opened, tell: Tell) -> int | None:
    """None when the file is whole, else how many of its bytes had been there before."""
    whole = hashlib.sha256()
    path.touch()
    with path.open("r+b") as out:
        kept = offset = _kept(out, listed, whole)
        out.truncate(offset)
        out.seek(offset)
        tell(offset, 0)
        if offset < listed.entry.bytes:
            try:
                with opened(offset) as reader:
                    while offset < listed.entry.bytes:
                        data = reader.read(listed.length(offset))
                        if not listed.fits(offset, data):
                            raise WrongError(f"{listed.name}: wrong from byte {offset} on")
                        out.write(data)
                        whole.update(data)
                        offset += len(data)
                        tell(offset, len(data))
            except CutError as error:
                raise CutError(f"{listed.name}: {error}") from None
        out.flush()
        os.fsync(out.fileno())
    return None if whole.hexdigest() == listed.entry.sha256 else kept


def _kept(out: BinaryIO, listed: ListedFile, whole: hashlib._Hash) -> int:
    """How many bytes of a file that was begun can stay; they are hashed."""
    offset = 0
    while offset < listed.entry.bytes:
        data = out.read(listed.length(offset))
        if len(data) < listed.length(offset) or not listed.fits(offset, data):
            break
        whole.update(data)
        offset += len(data)
    return offset
