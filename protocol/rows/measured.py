"""Rows that an adapter was measured on, as a log tells of them: how many, and a digest of them. (P-8.7)"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class MeasuredRows:
    """``digest``: SHA-256 of their file, and behind it of every image that the file names, 64 hex digits."""

    count: int
    digest: str


def measured_rows(path: Path, items: Iterable[Any]) -> MeasuredRows:
    """Of the file at ``path`` and what was asked in its rows, in their order: texts, or paths of images.

    Raises OSError, DataError for an image that is gone.
    """
    from protocol.rows.images import image_bytes  # of what may be none

    hasher, count = hashlib.sha256(path.read_bytes()), 0
    for count, item in enumerate(items, 1):
        if isinstance(item, Path):
            data = image_bytes(item, place=f"image {count}")
            hasher.update(hashlib.sha256(data).digest())
    return MeasuredRows(count=count, digest=hasher.hexdigest())
