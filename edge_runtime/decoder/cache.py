"""What a decoder holds of a text it has read, under one adapter for good.

Keys and values are what the adapter's linears made of the tokens: read under another adapter they give
another text, without an error. So a cache is made with its adapter and nothing can be read into it with
another: none of its functions takes one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from edge_runtime.decoder.adapters import DecoderAdapter
from edge_runtime.decoder.base import WritingBase
from edge_runtime.decoder.key_values import Floats, KeyValues
from protocol.errors import ArtefactError, DataError

PIECE = 128  # tokens of a run, which gives logits and scores of them all


class Cache:
    """Tokens that were read, with their keys and values. For one reader at a time. (:meth:`in_use`)"""

    def __init__(
        self,
        base: WritingBase,
        adapter: DecoderAdapter | None = None,
        memory: Mapping[str, Any] | None = None,
    ) -> None:
        """An empty one. ``memory``: further inputs of the graph that stay, of what was read for the text.

        Raises ArtefactError for an adapter of another base.
        """
        if adapter is not None and adapter.fingerprint != base.manifest.fingerprint:
            raise ArtefactError(
                f"{adapter.source} was loaded for base {adapter.fingerprint[:12]}…, this one is "
                f"{base.manifest.fingerprint[:12]}…",
                "load it for this base; it must have been trained on it",
            )
        self._base, self._adapter = base, adapter
        self._tokens: list[int] = []
        slots = base.manifest.graph.slot_names
        filled = adapter.values if adapter else {}
        values = {name: value for name, value in filled.items() if name in slots} | dict(
            memory or {}
        )
        self._memory = KeyValues(base.session, base.manifest, values, in_place=base.in_place)
        self._using = threading.Lock()

    @property
    def base(self) -> WritingBase:
        """Whose session reads."""
        return self._base

    @property
    def adapter(self) -> DecoderAdapter | None:
        """The adapter under which everything in it was read; None is the base alone."""
        return self._adapter

    @property
    def tokens(self) -> tuple[int, ...]:
        """What was read."""
        return tuple(self._tokens)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """For whoever reads; a second one at the same time is refused with DataError."""
        if not self._using.acquire(blocking=False):
            raise DataError(
                "an answer of this conversation is still being written",
                "wait for its end, or close it; another conversation may run meanwhile",
            )
        try:
            yield
        finally:
            self._using.release()

    def follow(self, tokens: Sequence[int]) -> Floats:
        """Hold ``tokens`` and no more; the logits (vocabulary,) behind them.

        What the cache has read already of their beginning is not read again. Raises DataError as
        :meth:`read`.
        """
        verify_tokens(self._base, tokens)
        same = next(
            (at for at, (a, b) in enumerate(zip(self._tokens, tokens, strict=False)) if a != b),
            min(len(self._tokens), len(tokens)),
        )
        same = min(same, len(tokens) - 1)  # logits come of reading
        self._memory.keep(same)
        del self._tokens[same:]
        return self.read(tokens[same:])

    def read(self, tokens: Sequence[int]) -> Floats:
        """Read ``tokens``, at least one, behind the others; the logits (vocabulary,) behind the last.

        Raises DataError for tokens that the base does not know or has no room for, before any is read.
        """
        verify_tokens(self._base, tokens, before=len(self._tokens))
        for start in range(0, len(tokens), PIECE):
            piece = tokens[start : start + PIECE]
            logits = self._memory.read(np.array(piece, np.int64))
            self._tokens += piece
        return logits


def verify_tokens(base: WritingBase, tokens: Sequence[int], *, before: int = 0) -> None:
    """Raises DataError unless there are tokens, all of the vocabulary, with room behind ``before`` others."""
    manifest = base.manifest
    if not tokens:
        raise DataError("there is no text to continue", "give a prompt")
    if before + len(tokens) > manifest.max_positions:
        raise DataError(
            f"the text has {before + len(tokens)} tokens, the base reads {manifest.max_positions} at most",
            "shorten it, or begin a new conversation",
        )
    for index, token in enumerate(tokens):
        if not 0 <= token < manifest.vocab_size:
            raise DataError(
                f"token {index} is {token}, the base knows 0 to {manifest.vocab_size - 1}",
                "encode the text with the base's own tokenizer",
            )
