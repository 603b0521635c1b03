"""The updates of an open attempt in clear, on disk before they count: the last, and the sum of the others.

A file for each of ten thousand clients would be a folder of 12 GB. After ``MOST`` of them their sum is
written beside them, and their files serve those that come next.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import numpy as np

from storage.whole import write_whole

MOST, SUM = 128, "sum"
HEADER, DIGEST = struct.Struct("<16sQ"), 32
MODE = 0o600  # they are single updates


class Replies:
    """Of the open attempt in ``folder``, which one coordinator has for itself.

    Each is there whole or not at all when the process is killed. A power cut may take some, or leave what
    a file had before: it says whose it is and what its words add up to, and counts for nothing where it lies.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Names are plain strings: a Path keeps each of its parts in the interpreter's table for good.
        self._files: dict[str, str] = {}  # of updates that are in no sum yet, by client
        self._spare: list[str] = []  # of those that are

    @property
    def full(self) -> bool:
        """Whether the sum is to be kept before more come."""
        return len(self._files) >= MOST

    def put(self, client: str, message: bytes | memoryview) -> None:
        """Keep an update, whole. Raises OSError."""
        spare = self._spare.pop() if self._spare else self._new()
        descriptor = os.open(spare, os.O_WRONLY | os.O_NOFOLLOW)
        with open(descriptor, "wb", buffering=0) as file:
            file.write(_header(client, message))
            left = memoryview(message)
            while left:
                left = left[file.write(left) :]
            if os.fstat(descriptor).st_size != file.tell():
                file.truncate()
        self._files[client] = self._path(client)
        os.replace(spare, self._files[client])

    def _new(self) -> str:
        path = os.path.join(self._folder, ".spare")
        _unlink(path)  # of a process that was killed
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE))
        return path

    def get(self, client: str) -> bytes | None:
        """An update that was kept; None without one."""
        path = self._path(client)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return None
        message = data[HEADER.size :]
        if data[: HEADER.size] != _header(client, message):
            _unlink(path)
            return None
        self._files[client] = path
        return message

    def remove(self, client: str) -> None:
        """Forget an update that turned out to be unusable."""
        self._files.pop(client, None)
        _unlink(self._path(client))

    def keep_sum(self, data: bytes) -> None:
        """Keep the sum of all that came in the place of its updates."""
        digest = hashlib.sha256(data).digest()
        write_whole(self._folder / SUM, digest + data, mode=MODE, durable=False)
        self._spare += self._files.values()
        self._files.clear()

    def kept_sum(self) -> bytes | None:
        """The sum that was kept last; None without one."""
        try:
            data = (self._folder / SUM).read_bytes()
        except FileNotFoundError:
            return None
        content = data[DIGEST:]
        return content if hashlib.sha256(content).digest() == data[:DIGEST] else None

    def summed(self, clients: Iterable[str]) -> None:
        """``clients`` are in the sum: their files may hold half of something else by now."""
        self._spare += [path for path in map(self._path, clients) if os.path.isfile(path)]

    def _path(self, client: str) -> str:
        # Names come from outside: quoted, a name cannot leave the folder.
        return os.path.join(self._folder, f"{quote(client, safe='')}.reply")


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _header(client: str, message: bytes | memoryview) -> bytes:
    """Whose it is, and the sum of its 64-bit words, its length among them."""
    whole = len(message) // 8 * 8
    words = int(np.frombuffer(message[:whole], "<u8").sum(dtype=np.uint64))
    rest = int.from_bytes(message[whole:], "little")
    added = (words + rest + (len(message) << 32)) % 2**64
    return HEADER.pack(hashlib.sha256(client.encode()).digest()[:16], added)
