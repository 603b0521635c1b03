"""Folders of a base: made whole or not at all, and what the system says against it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import ArtefactError, FedgeError, MachineError
from storage import whole

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
