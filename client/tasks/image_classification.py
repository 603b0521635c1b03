"""Images with labels: pixels as the base asks for them; targets and scores are those of texts with labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from client.data import Rows
from client.examples import Images, stamp_of
from client.opened_base import OpenedBase
from client.tasks.classification import TARGETS as TARGETS
from client.tasks.classification import score as score
from protocol.errors import DataError
from protocol.image_manifest import ImageManifest
from protocol.recipe import Recipe
from protocol.rows.images import read_pixels
from protocol.rows.read import Table
from protocol.tasks.image_classification import ImageClassification

MOST_HELD = 2**31  # bytes of pixels of one client's rows, which are kept as they were read


def targets(table: Table, task: ImageClassification) -> list[int]:
    """The index in ``task.labels`` of each row's label."""
    index = {label: at for at, label in enumerate(task.labels)}
    return [index[label] for label in table.targets]


def encode(rows: Rows, recipe: Recipe, base: OpenedBase) -> Images:
    """Every image, decoded and stretched. Raises DataError for the first that cannot be read."""
    assert isinstance(recipe.manifest, ImageManifest)
    return images_of(rows, recipe.manifest)


def images_of(rows: Rows, manifest: ImageManifest) -> Images:
    """The same for a base. Raises DataError."""
    shape = (len(rows), *manifest.pixels.shape)
    if (size := int(np.prod(shape, dtype=np.int64))) > MOST_HELD:
        raise DataError(
            f"{len(rows)} images are {size:,} bytes of pixels, more than the {MOST_HELD:,} that are held",
            "divide the rows between clients, or take a base that reads smaller images",
            public="more images than are held",
        )
    files = tuple(stamp_of(picture) for picture in rows.texts if isinstance(picture, Path))
    pixels = np.empty(shape, np.uint8)
    for row, picture in enumerate(rows.texts):
        pixels[row] = read_pixels(picture, manifest.pixels, place=rows.place(row))
    return Images(
        pixels=pixels,
        targets=np.array(rows.targets, TARGETS),
        settings=manifest.pixels,
        positions=manifest.max_positions,
        files=files,
    )
