"""Inference with swap and rollback: one session, one active adapter, the previous one kept.

A swap replaces a reference. An inference that is running holds the adapter it began with; the old
one is dropped when nothing uses it any more.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_runtime.adapter import ActiveAdapter, load_adapter
from edge_runtime.base import EdgeBase
from protocol.calibration import probabilities
from protocol.errors import ArtefactError

if TYPE_CHECKING:
    from protocol.transparency.policy import Policy

Logits = npt.NDArray[np.float32]  # (rows, labels)
BASE_MAX_LENGTH = 128  # tokens, where no adapter says how long texts may be
ROWS = 32  # per run: texts of like length together


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What an answer is to hold: the ``top`` likeliest labels, and none that is too unsure to be given.

    ``reject_below``: a probability; where the likeliest label's is lower, the answer is rejected.
    """

    top: int = 1
    reject_below: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A label; ``score`` is its probability at the adapter's temperature. (P-5.5)"""

    label: str
    index: int
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The likeliest label of a text and how likely it is; ``rejected``: too unlikely to be acted on.

    ``top`` are as many labels as were wanted, the likeliest first.
    """

    label: str
    index: int
    score: float
    logits: tuple[float, ...]
    rejected: bool = False
    top: tuple[Choice, ...] = ()

    def form(self, wanted: Wanted) -> dict[str, Any]:
        """As JSON has it: a rejected answer has no label. What was not asked for is not there."""
        document: dict[str, Any] = {"label": self.label, "index": self.index, "score": self.score}
        if wanted.reject_below > 0:
            document |= {"rejected": self.rejected}
            if self.rejected:
                document |= {"label": None, "index": None}
        if wanted.top > 1:
            document["top"] = [asdict(choice) for choice in self.top]
        return document


ONE = Wanted()


class EdgeRuntime:
    """Answers texts with a base and, once activated, an adapter. Safe to use from many threads."""

    def __init__(self, base: EdgeBase, policy: Policy | None = None) -> None:
        """``policy``: what it trusts; then only adapters with a passport become active. (P-8.15)"""
        self.base, self._policy = base, policy
        self._active: ActiveAdapter | None = None
        self._previous: ActiveAdapter | None = None
        self._swap = threading.Lock()
        self._tokenize = threading.Lock()

    @property
    def active(self) -> ActiveAdapter | None:
        """The adapter in use; None means the base alone."""
        return self._active

    def activate(self, folder: Path, probe: Sequence[str] | None = None) -> ActiveAdapter:
        """Check, load, probe, switch. Raises ArtefactError or ProofError; then the adapter in use stays.

        ``probe``: texts the new adapter must answer with finite logits, one per label.
        """
        candidate = load_adapter(folder, self.base, self._policy)
        try:
            logits = self._logits(list(probe or ["probe"]), candidate)
        except Exception as error:  # whatever ORT raises: the candidate must not become active
            raise ArtefactError(
                f"{folder}: the probe failed: {str(error).splitlines()[0][:200]}",
                "the adapter in use was kept; fetch this one again",
            ) from None
        if logits.shape[1] != len(candidate.note.labels) or not np.isfinite(logits).all():
            raise ArtefactError(
                f"{folder}: the probe gave logits of shape {logits.shape} or values that are not finite",
                "the adapter in use was kept; fetch this one again",
            )
        with self._swap:
            self._previous, self._active = self._active, candidate
        return candidate

    def rollback(self) -> ActiveAdapter | None:
        """Return to the adapter before the last activation; None means the base alone."""
        with self._swap:
            self._active, self._previous = self._previous, None
            return self._active

    def deactivate(self) -> None:
        """Answer with the base alone."""
        with self._swap:
            self._previous, self._active = self._active, None

    def logits(self, texts: Sequence[str]) -> Logits:
        """Logits (rows, labels) in the order of ``texts``."""
        return self._logits(list(texts), self._active)

    def infer(
        self,
        texts: Sequence[str],
        adapter: ActiveAdapter | None = None,
        wanted: Wanted = ONE,
    ) -> list[Prediction]:
        """The likeliest label of each text, by ``adapter`` where one is held, else by what is active."""
        active = adapter or self._active
        logits = self._logits(list(texts), active)
        fit = active.note.calibration if active else None
        scores = probabilities(logits, fit.temperature if fit else 1.0)
        labels = active.note.labels if active else self.base.own_labels()
        return [
            _prediction(row, shares, labels, wanted)
            for row, shares in zip(logits, scores, strict=True)
        ]

    def _logits(self, texts: list[str], adapter: ActiveAdapter | None) -> Logits:
        if not texts:
            return np.zeros((0, len(adapter.note.labels) if adapter else 1), np.float32)
        longest = (
            adapter.note.max_length
            if adapter
            else min(BASE_MAX_LENGTH, self.base.manifest.max_positions)
        )
        options = adapter.run_options if adapter else None
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts: dict[int, Logits] = {}
        for start in range(0, len(order), ROWS):
            chosen = order[start : start + ROWS]
            with self._tokenize:  # truncation is a setting of the shared tokenizer
                ids, mask = self.base.batch([texts[i] for i in chosen], max_length=longest)
            feeds = {"input_ids": ids, "attention_mask": mask}
            (logits,) = self.base.session.run([self.base.manifest.graph.output], feeds, options)
            parts.update(zip(chosen, logits, strict=True))
        return np.stack([parts[i] for i in range(len(texts))])


def _prediction(
    logits: Logits, shares: npt.NDArray[np.float64], labels: Sequence[str], wanted: Wanted
) -> Prediction:
    """Of one row: ``logits`` and ``shares`` (labels,)."""
    order = np.argsort(-logits, kind="stable")[: max(1, wanted.top)].tolist()
    top = tuple(Choice(label=labels[at], index=at, score=float(shares[at])) for at in order)
    likeliest = top[0]
    return Prediction(
        label=likeliest.label,
        index=likeliest.index,
        score=likeliest.score,
        logits=tuple(float(value) for value in logits),
        rejected=not likeliest.score >= wanted.reject_below,
        top=top,
    )
