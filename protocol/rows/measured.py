"""Rows that an adapter was measured on, as a log tells of them: how many, and a digest of them. (P-8.7)"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.regular import sha256_of


@dataclass(frozen=True, kw_only=True)
class MeasuredRows:
    """``digest``: SHA-256, 64 hex digits: of texts the file's; of other media over its and each of theirs."""

    count: int
    digest: str


def measured_rows(path: Path, items: Iterable[Any]) -> MeasuredRows:
    """Of the file at ``path`` and what was asked in its rows, in their order: texts, or paths of files.

    Raises OSError, DataError for a file that is gone.
    """
    from protocol.rows.media import file_bytes  # of what may be none

    digest, count = sha256_of(path), 0
    files = hashlib.sha256(bytes.fromhex(digest))
    for count, item in enumerate(items, 1):
        if isinstance(item, Path):
            data = file_bytes(item, place=f"row {count}", noun="file")
            files.update(hashlib.sha256(data).digest())
            digest = files.hexdigest()
    return MeasuredRows(count=count, digest=digest)
