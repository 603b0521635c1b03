"""Labels and numbers on a device while releases come and go. (P-9.7)"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edge_runtime.adapter import ActiveAdapter
from edge_runtime.answer_options import LIKELIEST, AnswerOptions
from edge_runtime.backends.encoder import open_encoder
from edge_runtime.following import Follower
from edge_runtime.settings import Device
from edge_runtime.store import GRAPH
from edge_runtime.tasks import Prediction, task_named
from protocol.errors import DeliveryError


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Predictions, and the release that made them: its id, None for a base alone, and its number, if any.

    ``personal``: no release made them but an adapter that this device has trained from number ``seq``.
    """

    release: str | None
    seq: int | None
    predictions: Sequence[Prediction]
    has_labels: bool = True
    personal: bool = False


class Service(Follower[ActiveAdapter]):
    """One per process; safe to ask from many threads. ``clock`` gives seconds for the fault window."""

    def __init__(self, device: Device, *, clock: Callable[[], float]) -> None:
        """Open the base and the release in use. Raises ArtefactError for a base that cannot be opened."""
        backend = open_encoder(device.base, threads=device.threads, cache=device.store / GRAPH)
        self.runtime = backend.runtime
        super().__init__(device, backend.load, clock=clock)

    def classify(self, texts: Sequence[Any], options: AnswerOptions = LIKELIEST) -> Answer:
        """Raises DeliveryError `serve.empty` with no release, `serve.failed` when the release fails.

        DataError for texts and wishes that it was not trained for.
        """
        serving = self.serving
        task = task_named(serving.adapter.note.task)
        task.verify_options(options)
        reader = self.runtime.base.reader
        questions = reader.prepared(texts, pairs=serving.adapter.note.pairs)
        try:
            predictions = self.runtime.infer(questions, serving.adapter, options)
            if not all(answer.is_finite for answer in predictions):
                raise ArithmeticError("the answer is not finite")
        except Exception as error:  # whatever ORT raises counts against the release
            self.failed(serving, error)
            raise DeliveryError(
                "serve.failed",
                f"{'what was trained here from ' if serving.personal else ''}release {serving.seq} "
                f"failed: {type(error).__name__}",
                "ask again; a release that fails often is rolled back",
            ) from None
        return Answer(
            release=serving.release,
            seq=serving.seq,
            predictions=predictions,
            has_labels=task.HAS_LABELS,
            personal=serving.personal,
        )
