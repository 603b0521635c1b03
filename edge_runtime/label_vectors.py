"""Vectors of labels' names, as the base reads any text: what a head may begin with. (P-2.7)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.base import EdgeBase
from protocol.errors import PlanError
from protocol.forms import HEAD
from protocol.head import HeadStart, head_of
from protocol.manifest import media_of

ROWS = 32  # texts at once


def name_of(label: str) -> str:
    """A label as people write it: words apart."""
    return " ".join(label.replace("_", " ").replace("-", " ").split()) or label


def label_vectors(base: EdgeBase, labels: Sequence[str]) -> npt.NDArray[np.float32]:
    """What the head reads (labels, in) where the name of each label is the text."""
    return text_vectors(base, [name_of(label) for label in labels])


def text_vectors(base: EdgeBase, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """What the head reads (texts, in), cut to the base's positions: a head that hands on what it reads."""
    if (read := media_of(base.manifest)) != "texts":
        raise PlanError(
            f"the base reads {read}, and names of labels are texts", "leave the head to be learnt"
        )
    width = base.manifest.head.in_features
    plain: dict[str, npt.NDArray[Any]] = {f"{HEAD}.weight": np.eye(width, dtype=np.float32)}
    plain[f"{HEAD}.bias"] = np.zeros(width, np.float32)
    parts = []
    for first in range(0, len(texts), ROWS):
        rows = base.batch(texts[first : first + ROWS], max_length=base.manifest.max_positions)
        parts.append(base.session.run(None, rows | plain)[0])
    return np.concatenate(parts)


def named_head(
    base: Path,
    labels: Sequence[str],
    *,
    length: float,
    trained: bool = True,
    rank: int = 0,
    turns: int = 1,
) -> HeadStart:
    """A head of the labels' names on the base in a folder. Raises ArtefactError, PlanError."""
    vectors = label_vectors(EdgeBase.open(base, threads=1), labels)
    try:
        return head_of(vectors, length=length, trained=trained, rank=rank, turns=turns)
    except ValueError as error:
        raise PlanError(
            f"the labels' names make no head: {error}",
            "give the labels names that differ in words, or leave the head to be learnt",
        ) from None
