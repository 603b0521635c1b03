"""Files of a medium with labels, read as the base asks; targets and scores are those of texts with labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from client.data import Rows
from client.examples import MediaRows, Stamp, media_rows, stamp_of
from client.opened_base import OpenedBase
from client.tasks.classification import TARGETS as TARGETS
from client.tasks.classification import score as score
from client.tasks.classification import targets as targets
from protocol.errors import DataError
from protocol.media_manifest import MediaManifest
from protocol.recipe import Recipe
from protocol.rows.media import Values, codec_of, read_file

MOST_HELD = 2**31  # bytes of one client's rows, which are kept as they were read


def encode(rows: Rows, recipe: Recipe, base: OpenedBase) -> MediaRows:
    """Every file, decoded. Raises DataError for the first that cannot be read."""
    assert isinstance(recipe.manifest, MediaManifest)
    return encoded_files(rows, recipe.manifest)


def encoded_files(rows: Rows, manifest: MediaManifest) -> MediaRows:
    """The same for a base. Raises DataError."""
    values, files = files_in_memory(rows, manifest)
    return replace(media_rows(manifest, values, np.array(rows.targets, TARGETS)), files=files)


def files_in_memory(rows: Rows, manifest: MediaManifest) -> tuple[Values, tuple[Stamp, ...]]:
    """What is kept of every file, and what these were. Raises DataError."""
    codec, plural = codec_of(manifest), manifest.MEDIUM.plural
    shape = (len(rows), *codec.shape)
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(codec.kept).itemsize
    if size > MOST_HELD:
        raise DataError(
            f"{len(rows)} {plural} take {size:,} bytes, more than the {MOST_HELD:,} that are held",
            f"divide the rows between clients, or take a base that reads less of {plural}",
            public=f"more {plural} than are held",
        )
    files = tuple(stamp_of(item) for item in rows.texts if isinstance(item, Path))
    values = np.empty(shape, codec.kept)
    for row, item in enumerate(rows.texts):
        values[row] = read_file(item, codec, place=rows.place(row))
    return values, files
