"""Answers by one base and one adapter for as long as the process lives: no repository, no store, no swap."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.answer_options import LIKELIEST, AnswerOptions
from edge_runtime.base import EdgeBase, numbered_labels
from edge_runtime.blends.note import BlendNote
from edge_runtime.lower_rank import verify_ranked
from edge_runtime.runtime import EdgeRuntime
from edge_runtime.service import Answer
from edge_runtime.tasks import task_named
from protocol.errors import DeliveryError
from protocol.peft_format import RELEASE_FILE
from storage.regular import read_regular

if TYPE_CHECKING:
    from protocol.transparency.policy import Policy


class SingleService:
    """Safe to ask from many threads, as :class:`edge_runtime.service.Service` is."""

    def __init__(
        self,
        base: Path,
        adapter: Path | None,
        policy: Policy | None = None,
        *,
        threads: int = 0,
        rank: int | None = None,
    ) -> None:
        """Open and check both; ``rank``: the adapter's first ranks alone. Raises as ``load_adapter``."""
        self._rank = rank
        self.runtime = EdgeRuntime(EdgeBase.open(base, threads=threads), policy)
        self._release: str | None = None
        self.warning = ""
        verify_ranked(adapter, rank)
        if adapter is None:
            names = self.runtime.base.own_labels()  # raises here rather than at every answer
            if names == numbered_labels(len(names)):
                self.warning = (
                    "the base has no head of its own: answers without an adapter mean nothing; "
                    "name a released adapter with --adapter"
                )
        else:
            active = self.runtime.activate(adapter, rank=rank)
            note, self.warning = active.note, active.caution
            if isinstance(note, BlendNote):
                self.warning = note.caution
                return
            self._release = hashlib.sha256(read_regular(adapter / RELEASE_FILE)).hexdigest()

    def classify(self, texts: Sequence[Any], options: AnswerOptions = LIKELIEST) -> Answer:
        """Raises DeliveryError `serve.failed`, DataError for texts and wishes that the
        adapter was not trained for."""
        active = self.runtime.active
        task = task_named(active.note.task if active else "classification")
        task.verify_options(options)
        pairs = active.note.pairs if active else any(isinstance(text, tuple) for text in texts)
        questions = self.runtime.base.reader.prepared(texts, pairs=pairs)
        try:
            predictions = self.runtime.infer(questions, options=options)
            if not all(answer.is_finite for answer in predictions):
                raise ArithmeticError("the answer is not finite")
        except Exception as error:  # ONNX Runtime raises types of its own
            raise DeliveryError(
                "serve.failed", f"the adapter failed: {type(error).__name__}", "ask again"
            ) from None
        return Answer(
            release=self._release, seq=None, predictions=predictions, has_labels=task.HAS_LABELS
        )

    def health(self) -> dict[str, Any]:
        """Plain values: what is served."""
        base = self.runtime.base.manifest.fingerprint
        cut = {} if self._rank is None else {"rank": self._rank}
        return {"status": "ok", "release": self._release, "seq": None, "base": base} | cut
