"""What a graph of texts reads of encodings that a tokenizer has padded: the same for releases and devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def text_feeds(encodings: Sequence[Any]) -> dict[str, Integers]:
    """Ids and mask, int64 (rows, longest row), of one encoding or more."""
    return {
        "input_ids": padded([encoding.ids for encoding in encodings], encodings),
        "attention_mask": padded([encoding.attention_mask for encoding in encodings], encodings),
    }


def padded(values: Sequence[Sequence[Any]], encodings: Sequence[Any]) -> Integers:
    """``values``, row by row one for each token, up to the longest row's last that is no pad."""
    width = max(sum(encoding.attention_mask) for encoding in encodings)
    return np.array([row[:width] for row in values], np.int64)
