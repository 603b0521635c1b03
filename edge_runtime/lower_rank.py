"""An adapter at a lower rank: the first columns of its low-rank factors, cut in memory. (docs/adr/0070)

What is checked is the release as it is; a cut has no file and no digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edge_runtime.blends.note import AnyNote, BlendNote
from protocol.errors import ArtefactError, DataError, printable
from protocol.forms import DOWN, UP
from protocol.peft_format import ReleaseNote

Note = TypeVar("Note", bound=AnyNote | None)


def rank_of(tensors: Mapping[str, npt.NDArray[Any]]) -> int:
    """The largest rank of a linear's factors, 0 where there are none."""
    return max(
        (value.shape[1] for name, value in tensors.items() if name.endswith(DOWN)), default=0
    )


def at_rank(
    tensors: Mapping[str, npt.NDArray[Any]], rank: int, *, source: str
) -> dict[str, npt.NDArray[Any]]:
    """The adapter with the first ``rank`` columns of every first factor, rows of every second one.

    ``tensors`` are checked and in the shapes of slots: (in, r) and (r, out). What has no rank stays, and
    so do factors of a lower one. Raises ArtefactError without low-rank factors, DataError for a rank above.
    """
    whole = rank_of(tensors)
    if not whole:
        raise ArtefactError(
            f"{source} has no low-rank factors, so no rank to lower", "leave --rank out"
        )
    if not 1 <= rank <= whole:
        raise DataError(f"--rank {rank}: {source} has rank {whole}", f"from 1 to {whole}")
    cut = {}
    for name, value in tensors.items():
        first = value[:, :rank] if name.endswith(DOWN) else value
        cut[name] = np.ascontiguousarray(value[:rank] if name.endswith(UP) else first)
    return cut


def cut_release(
    tensors: Mapping[str, npt.NDArray[Any]], note: Note, rank: int, *, source: str
) -> tuple[dict[str, npt.NDArray[Any]], Note, str]:
    """A release's tensors at a rank, its note, and what whoever runs them is told, "" where that is nothing.

    ``note`` is None of a file alone. Below the whole rank the note has no temperature: that was fitted to
    other logits. Raises as :func:`at_rank`, ArtefactError for a blend.
    """
    if isinstance(note, BlendNote):
        raise ArtefactError(
            f"{source} is a blend: its parts' ranks stand side by side, and the first are the first part's",
            "leave --rank out, or name a release",
        )
    whole, cut = rank_of(tensors), at_rank(tensors, rank, source=source)
    if rank == whole:
        return cut, note, ""
    if isinstance(note, ReleaseNote):
        note = note.model_copy(update={"calibration": None})
        if note.nested:
            return cut, note, ""
    caution = f"{source} was not trained to answer at lower ranks, as method `dylora` does: "
    caution += f"the first {rank} of its {whole} are an arbitrary part of it"
    return cut, note, printable(caution)


def verify_ranked(adapter: Path | None, rank: int | None) -> None:
    """A rank is one of an adapter. Raises DataError."""
    if rank is not None and adapter is None:
        raise DataError(f"--rank {rank}: there is no adapter to lower it of", "give --adapter")
