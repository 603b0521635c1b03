"""What a decoder holds of a text it has read, under one adapter for good.

Keys and values are what the adapter's linears made of the tokens: read under another adapter they give
another text, without an error. So a cache is made with its adapter and nothing can be read into it with
another: none of its functions takes one.

An adapter's prefix is what the cache holds before anything is read, its soft prompt the first that is read
into it, once; neither is among the cache's tokens, and both take positions.
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
        prompt = adapter.prompt_length if adapter else 0
        self._prompt = [base.manifest.vocab_size + row for row in range(prompt)]
        filled = adapter.values if adapter else {}
        self._memory = KeyValues(
            base.session,
            base.manifest,
            {name: value for name, value in filled.items() if name in base.optional}
            | dict(memory or {}),
            in_place=base.in_place,
            prefix=adapter.prefix if adapter else (),
        )
        self._prefix = self._memory.length
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
        """What was read of a text."""
        return tuple(self._tokens)

    @property
    def memory(self) -> KeyValues:
        """The keys and values of what it holds."""
        return self._memory

    @property
    def has_begun(self) -> bool:
        """Whether it holds tokens of a text, and so what comes before them."""
        return bool(self._tokens)

    def append(self, token: int) -> None:
        """A token that was read into :attr:`memory`, behind what it held, by a run of several texts."""
        self._memory.length += 1
        self._tokens.append(token)

    @property
    def room(self) -> int:
        """Tokens that a text may have."""
        return self._base.manifest.max_positions - self._prefix - len(self._prompt)

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
        self.verify(tokens)
        same = next(
            (at for at, (a, b) in enumerate(zip(self._tokens, tokens, strict=False)) if a != b),
            min(len(self._tokens), len(tokens)),
        )
        same = min(same, len(tokens) - 1)  # logits come of reading
        if same < len(self._tokens):
            self._memory.keep(self._prefix + len(self._prompt) + same)
            del self._tokens[same:]
        return self.read(tokens[same:])

    def read(self, tokens: Sequence[int]) -> Floats:
        """Read ``tokens``, at least one, behind the others; the logits (vocabulary,) behind the last.

        Raises DataError for tokens that the base does not know or has no room for, before any is read.
        """
        self.verify(tokens, before=len(self._tokens))
        begun = self._memory.length - self._prefix
        waiting = [*self._prompt[begun:], *tokens]  # a prompt is read with the first tokens
        for start in range(0, len(waiting), PIECE):
            piece = waiting[start : start + PIECE]
            logits = self._memory.read(np.array(piece, np.int64))
            self._tokens += [token for token in piece if token < self._base.manifest.vocab_size]
        return logits

    def verify(self, tokens: Sequence[int], *, before: int = 0) -> None:
        """Raises DataError unless there are tokens, of the vocabulary, with room behind ``before`` others."""
        taken = self._prefix + len(self._prompt)
        verify_tokens(
            tokens,
            known=self._base.manifest.vocab_size,
            room=self.room,
            before=before,
            beside=f" beside the {taken} positions of the adapter's prompt" if taken else "",
        )


def verify_tokens(
    tokens: Sequence[int], *, known: int, room: int, before: int = 0, beside: str = ""
) -> None:
    """Raises DataError unless there are tokens, all ``known``, with room behind ``before`` others."""
    if not tokens:
        raise DataError("there is no text to continue", "give a prompt")
    if before + len(tokens) > room:
        raise DataError(
            f"the text has {before + len(tokens)} tokens, the base reads {room} at most{beside}",
            "shorten it, or begin a new conversation",
        )
    for index, token in enumerate(tokens):
        if not 0 <= token < known:
            raise DataError(
                f"token {index} is {token}, the base knows 0 to {known - 1}",
                "encode the text with the base's own tokenizer",
            )
