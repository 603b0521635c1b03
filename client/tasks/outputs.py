"""What tasks share that a head answers: one target for each text, pair of them, or page."""

from __future__ import annotations

import numpy as np

from client.batches import Encoded, encode
from client.data import Rows
from client.opened_base import OpenedBase
from protocol.recipe import Recipe


def encode_outputs(rows: Rows, recipe: Recipe, base: OpenedBase, kind: type[np.generic]) -> Encoded:
    """Token ids by the base's tokenizer; targets are an array of ``kind``, (rows,)."""
    return encode(
        base.tokenizer,
        rows.texts,
        np.array(rows.targets, kind),
        recipe.plan.task.longest,
        typed=recipe.typed,
        boxed=recipe.boxed,
        place=rows.place,
    )
