"""A base that answers with labels or numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.adapter import ActiveAdapter
from edge_runtime.answer_options import LIKELIEST
from edge_runtime.base import EdgeBase
from edge_runtime.mapped_graph import open_mapped
from edge_runtime.probe import (
    MOST_TIMED,
    REMEDY,
    Clock,
    Examined,
    Probe,
    least_median_ms,
    refuse_kind,
    unreadable,
)
from edge_runtime.runtime import EdgeRuntime
from edge_runtime.tasks import Prediction, task_named
from protocol.errors import DataError, DeliveryError, shortened
from protocol.media import MEDIA

if TYPE_CHECKING:
    from protocol.transparency.policy import Policy

TEXTS = {True: "pairs of texts", False: "single texts"}


class EncoderBackend:
    """Answers through ``runtime``, with the adapter that each question names."""

    def __init__(self, runtime: EdgeRuntime) -> None:
        self.runtime = runtime
        self.ITEM = runtime.base.reader.ITEM

    def load(self, folder: Path, policy: Policy | None = None) -> ActiveAdapter:
        """As `Backend.load`."""
        return self.runtime.admitted(folder, policy=policy)

    def questions(self, probe: Probe) -> Sequence[Any]:
        """As `Backend.questions`: texts, pairs or pages, or arrays of files."""
        if probe.kind == "texts":
            raise unreadable("its rows have `contains`, and the base writes no text")
        if probe.most_error is not None:
            raise unreadable("it has `most_error`, and the base draws nothing")
        medium, column = MEDIA.get(self.runtime.base.manifest.task), probe.rows[0].medium
        if medium and column and column != medium.column:
            raise unreadable(f"its rows have `{column}`, and the base answers {medium.plural}")
        try:
            return self.runtime.base.reader.prepared(
                [row.question for row in probe.rows], pairs=probe.pairs
            )
        except DataError as error:
            raise unreadable(error.cause) from None

    def examine(
        self, adapter: ActiveAdapter, probe: Probe, questions: Sequence[Any], clock: Clock
    ) -> Examined:
        """As `Backend.examine`."""
        task = task_named(adapter.note.task)
        refuse_kind("labels" if task.HAS_LABELS else "values", probe)
        if adapter.note.pairs != probe.pairs:
            cause = f"the release answers {TEXTS[adapter.note.pairs]}, the probe has {TEXTS[probe.pairs]}"
            raise DeliveryError("probe.labels", cause, REMEDY)
        self.runtime.verify_finite(adapter, questions)
        answers: Sequence[Prediction] = self.runtime.infer(questions, adapter, LIKELIEST)
        wrong = {
            at: f"{_shown(answer.answer)} for {_shown(row.answer)}"
            for at, (row, answer) in enumerate(zip(probe.rows, answers, strict=True))
            if not task.is_right(answer, row.answer, probe.within or 0.0)
        }
        passes = self._timed(adapter, questions[:MOST_TIMED], clock)
        return Examined(wrong=wrong, latency_ms=least_median_ms(passes, probe.most_latency_ms))

    def _timed(
        self, adapter: ActiveAdapter, questions: Sequence[Any], clock: Clock
    ) -> Iterator[list[float]]:
        """Seconds of each question alone, again at each try."""
        while True:
            seconds = []
            for question in questions:
                start = clock()
                self.runtime.infer([question], adapter)
                seconds.append(clock() - start)
            yield seconds


def open_encoder(base: Path, *, threads: int, cache: Path | None = None) -> EncoderBackend:
    """Open such a base, its graph mapped from ``cache`` if one is named. Raises ArtefactError."""
    opened = (
        open_mapped(base, cache, threads=threads) if cache else EdgeBase.open(base, threads=threads)
    )
    return EncoderBackend(EdgeRuntime(opened))


def _shown(answer: str | float) -> str:
    return repr(shortened(str(answer), 60))
