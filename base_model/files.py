"""Folders of a base: made whole or not at all, and what the system says against it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.chunks import CHUNK_BYTES, chunks_of
from protocol.errors import ArtefactError, FedgeError, MachineError
from protocol.manifest import FileEntry
from storage import whole
from storage.regular import sha256_of

# A library written in Rust says the number only in its text.
NUMBER = re.compile(r"os error (\d+)")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """What the system says against writing ``out`` becomes a MachineError; its cause is the system's."""
    try:
        yield
    except OSError as error:
        raise _refused(out, error.errno or 0) from None
    except MemoryError:
        raise MachineError(f"{out}: there is not enough memory", "use a larger machine") from None
    except Exception as error:
        number = NUMBER.search(str(error))
        if number is None or isinstance(error, FedgeError):
            raise
        raise _refused(out, int(number[1])) from None


def _refused(out: Path, number: int) -> MachineError:
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return MachineError(
        f"{out} cannot be written: {os.strerror(number)}",
        "make room, or name another disk" if full else "name a folder that you may write to",
    )


@contextmanager
def folder_that_appears(out: Path) -> Iterator[Path]:
    """:func:`storage.whole.folder_that_appears`. Raises ArtefactError when ``out`` is no empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArtefactError(f"{out} exists already", "choose another --out or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole.folder_that_appears(out) as temporary:
        yield temporary


def chunks_text(folder: Path) -> str:
    """``chunks.json`` for all files of a folder. (P-1.8)"""

    def pieces(path: Path) -> Iterator[bytes]:
        with path.open("rb") as file:
            while piece := file.read(CHUNK_BYTES):
                yield piece

    return chunks_of({path.name: pieces(path) for path in sorted(folder.iterdir())}).to_json()


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Digest and size of all files of a folder, for its manifest."""
    return {
        path.name: FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)
        for path in sorted(folder.iterdir())
    }
