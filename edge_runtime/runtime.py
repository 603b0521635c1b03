"""Inference with swap and rollback: one session, one active adapter, the previous one kept.

A swap replaces a reference. An inference that is running holds the adapter it began with; the old
one is dropped when nothing uses it any more.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_runtime.adapter import ActiveAdapter, load_adapter
from edge_runtime.answer_options import LIKELIEST, AnswerOptions
from edge_runtime.base import EdgeBase
from edge_runtime.tasks import classification, task_named
from protocol.errors import ArtefactError

if TYPE_CHECKING:
    from protocol.transparency.policy import Policy

Logits = npt.NDArray[np.float32]  # (rows, labels)
BASE_MAX_LENGTH = 128  # tokens, where no adapter says how long texts may be


class EdgeRuntime:
    """Answers texts or files with a base and, once activated, an adapter. Many threads may use it."""

    def __init__(self, base: EdgeBase, policy: Policy | None = None) -> None:
        """``policy``: what it trusts; then only adapters with a passport become active. (P-8.15)"""
        self.base, self._policy = base, policy
        self._active: ActiveAdapter | None = None
        self._previous: ActiveAdapter | None = None
        self._swap = threading.Lock()

    @property
    def active(self) -> ActiveAdapter | None:
        """The adapter in use; None means the base alone."""
        return self._active

    def activate(
        self, folder: Path, probe: Sequence[Any] | None = None, *, rank: int | None = None
    ) -> ActiveAdapter:
        """Check, load, probe, switch. Raises as :func:`load_adapter`; then the adapter in use stays.

        ``probe``: texts the new adapter must answer with finite logits, one per label. ``rank``: lower than
        its own.
        """
        candidate = self.admitted(folder, probe, self._policy, rank=rank)
        with self._swap:
            self._previous, self._active = self._active, candidate
        return candidate

    def admitted(
        self,
        folder: Path,
        probe: Sequence[Any] | None = None,
        policy: Policy | None = None,
        *,
        rank: int | None = None,
    ) -> ActiveAdapter:
        """The same adapter without the switch; ``policy`` instead of the runtime's."""
        candidate = load_adapter(folder, self.base, policy, rank=rank)
        self.verify_finite(candidate, probe)
        return candidate

    def verify_finite(self, candidate: ActiveAdapter, probe: Sequence[Any] | None = None) -> None:
        """It answers texts with finite logits, one per label. Raises ArtefactError."""
        try:
            own = [self.base.reader.example(pairs=candidate.note.pairs)]
            logits = self._logits(list(probe or own), candidate)
        except Exception as error:  # whatever ORT raises: the candidate must not become active
            raise ArtefactError(
                f"{candidate.folder}: the probe failed: {str(error).splitlines()[0][:200]}",
                "the adapter in use was kept; fetch this one again",
            ) from None
        if logits.shape[1] != candidate.note.outputs or not np.isfinite(logits).all():
            raise ArtefactError(
                f"{candidate.folder}: the probe gave logits of shape {logits.shape} or values that are "
                "not finite",
                "the adapter in use was kept; fetch this one again",
            )

    def rollback(self) -> ActiveAdapter | None:
        """Return to the adapter before the last activation; None means the base alone."""
        with self._swap:
            self._active, self._previous = self._previous, None
            return self._active

    def logits(self, texts: Sequence[Any]) -> Logits:
        """Logits (rows, labels) in the order of ``texts``."""
        return self._logits(list(texts), self._active)

    def infer(
        self,
        texts: Sequence[Any],
        adapter: ActiveAdapter | None = None,
        options: AnswerOptions = LIKELIEST,
    ) -> Sequence[Any]:
        """What the task answers to each text, by ``adapter`` where one is held, else by what is active."""
        active = adapter or self._active
        logits = self._logits(list(texts), active)
        if active is None:
            return classification.answers(logits, labels=self.base.own_labels(), options=options)
        return task_named(active.note.task).of_release(logits, active.note, options)

    def _logits(self, texts: list[Any], adapter: ActiveAdapter | None) -> Logits:
        if not texts:
            return np.zeros((0, adapter.note.outputs if adapter else 1), np.float32)
        longest = (
            adapter.note.max_length
            if adapter
            else min(BASE_MAX_LENGTH, self.base.manifest.max_positions)
        )
        options = adapter.run_options if adapter else None
        order = sorted(range(len(texts)), key=lambda i: self.base.reader.size(texts[i]))
        parts: dict[int, Logits] = {}
        rows = self.base.reader.together
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            feeds = self.base.batch([texts[i] for i in chosen], max_length=longest)
            (logits,) = self.base.session.run([self.base.manifest.graph.output], feeds, options)
            parts.update(zip(chosen, logits, strict=True))
        return np.stack([parts[i] for i in range(len(texts))])
