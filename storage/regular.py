"""Files from folders that others have filled: regular ones only, sized first, bounded while they are read.

Every role has such folders (docs/adr/0025). A pipe would wait for its writer for ever, a device never end,
and a name may be any of these by the moment it is opened: so it is the opened file that is looked at. Links
are followed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

SMALL = 2**24  # of a document (protocol.documents.MOST_BYTES, which takes pydantic to import)
PIECE = 2**20


@contextmanager
def open_regular(path: Path, *, most: int | None = None) -> Iterator[BinaryIO]:
    """The file at ``path``, of at most ``most`` bytes now. Raises OSError, also for what is no file."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise _odd(path, "not a regular file")  # opening a device may do something
    with open(path, "rb", opener=_opened) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise _odd(path, "not a regular file")
        if most is not None and found.st_size > most:
            raise _odd(path, f"longer than {most} bytes")
        yield file


def read_regular(path: Path, *, most: int = SMALL) -> bytes:
    """The bytes of a file of at most ``most``, also where it grows meanwhile. Raises OSError."""
    with open_regular(path, most=most) as file:
        # A read claims as much memory as it asks for, and a small device has no 2 GiB to give.
        size = min(os.fstat(file.fileno()).st_size, most)
        data = file.read(size + 1)
        while size < len(data) <= most and (more := file.read(min(PIECE, most + 1 - len(data)))):
            data += more
    if len(data) > most:
        raise _odd(path, f"longer than {most} bytes")
    return data


def read_regular_text(path: Path, *, most: int = SMALL) -> str:
    """The same as UTF-8. Raises OSError or UnicodeDecodeError."""
    return read_regular(path, most=most).decode()


def read_settings_text(path: Path, *, most: int = SMALL) -> str:
    """The same of a file that people write: a byte-order mark, as some editors add, is no text."""
    return read_regular_text(path, most=most).removeprefix("\ufeff")


def sha256_of(path: Path, *, size: int | None = None) -> str:
    """Hex SHA-256 of a file, of no more than ``size`` bytes where that is given. Raises OSError."""
    hasher, left = hashlib.sha256(), size
    with open_regular(path, most=size) as file:
        while data := file.read(PIECE if left is None else min(PIECE, left + 1)):
            if left is not None and (left := left - len(data)) < 0:
                raise _odd(path, f"longer than {size} bytes")
            hasher.update(data)
    return hasher.hexdigest()


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _odd(path: Path, fault: str) -> OSError:
    return OSError(errno.EINVAL, fault, str(path))
