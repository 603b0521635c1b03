"""Adapters of a base that draws: checked tensors for the graph's slots, and the labels they draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.adapter import (
    MOST_BYTES,
    REFETCH,
    adapter_file,
    check_slots,
    private_copy,
    read_any_note,
    read_tensors,
)
from edge_runtime.drawing.base import DrawingBase
from protocol.errors import ArtefactError, DataError
from protocol.media import DRAWN
from protocol.misspelling import nearest
from storage.regular import read_regular

if TYPE_CHECKING:
    from protocol.transparency.policy import Policy


@dataclass(frozen=True, kw_only=True)
class DrawingAdapter:
    """A loaded adapter: ``values`` by the graph's inputs; ``labels``: what it draws, class by class.

    ``caution``: what whoever runs it is told.
    """

    source: str
    values: Mapping[str, Any]
    labels: tuple[str, ...]
    caution: str = ""

    def class_of(self, label: str) -> int:
        """The class of a label. Raises DataError for one that it was not trained for."""
        if label in self.labels:
            return self.labels.index(label)
        near = nearest(label, self.labels)
        raise DataError(
            f"{label[:60]!r} is no label of what is in use"
            + (f"; the nearest is {near!r}" if near else ""),
            f"name one of: {', '.join(self.labels[:50])}",
        )


def load_drawing_adapter(
    path: Path, base: DrawingBase, *, policy: Policy | None = None
) -> DrawingAdapter:
    """The folder of a release, or an ``.onnx_adapter`` alone, which has no labels.

    With a ``policy`` it has to be a release in a log that this trusts. Raises ArtefactError, ProofError.
    """
    labels: list[str] = []
    caution = ""
    if path.is_dir():
        note = read_any_note(path)
        if note.task != DRAWN.task:
            raise ArtefactError(
                f"{path} is of task {note.task[:60]}, it draws no images",
                "use it with `fedge edge infer`",
            )
        data = adapter_file(path, note, fingerprint=base.manifest.fingerprint, policy=policy)
        labels, caution = note.labels, getattr(note, "caution", "")
        if len(labels) > base.manifest.classes:
            raise ArtefactError(f"{path}: it has more labels than the base has classes", REFETCH)
    elif policy is not None:
        raise ArtefactError(
            f"{path} is a file alone, which no log vouches for", "name the folder of the release"
        )
    else:
        try:
            data = read_regular(path, most=MOST_BYTES)
        except OSError:
            raise ArtefactError(f"{path} is missing or cannot be read", REFETCH) from None
    with private_copy(data) as own:
        tensors = read_tensors(own, source=str(path))
    if not tensors:
        raise ArtefactError(f"{path}: it is empty, so that it adapts nothing", REFETCH)
    check_slots(tensors, base.manifest, source=str(path))
    return DrawingAdapter(source=str(path), values=tensors, labels=tuple(labels), caution=caution)
