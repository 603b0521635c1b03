"""Turning a text into another: it is read once, then written token by token over a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edge_runtime.decoder.adapters import Adapters, DecoderAdapter
from edge_runtime.decoder.cache import Cache, verify_tokens
from edge_runtime.decoder.generation import Request, Step, Text, generate
from edge_runtime.seq2seq.base import Seq2SeqBase, memory_of


class Translator:
    """The writer of a base that turns a text into another."""

    def __init__(self, base: Seq2SeqBase) -> None:
        self.base, self.adapters = base, Adapters(base)

    def generate(self, source: Sequence[int], request: Request) -> Iterator[Step]:
        """Write what the base makes of the tokens of ``source``, both under the request's adapter.

        Closing the iterator ends the work, at the latest with the next token. Raises DataError before
        anything runs, ArtefactError when ONNX Runtime does.
        """
        adapter = self.adapters.named(request.adapter)
        self._verify(source, request)
        return self._steps(source, request, adapter)

    def room(self, adapter: DecoderAdapter | None) -> int:
        """Tokens that a source may have."""
        return self.base.manifest.max_positions

    def text(self, source: Sequence[int], request: Request, adapter: DecoderAdapter | None) -> Text:
        """The steps, before them a None for the source, which is read at once."""
        self._verify(source, request)
        return Text(steps=self._in_turns(source, request, adapter))

    def _in_turns(
        self, source: Sequence[int], request: Request, adapter: DecoderAdapter | None
    ) -> Iterator[Step | None]:
        steps = self._steps(source, request, adapter)
        yield None
        yield from steps

    def _steps(
        self, source: Sequence[int], request: Request, adapter: DecoderAdapter | None
    ) -> Iterator[Step]:
        manifest = self.base.manifest
        memory = memory_of(self.base.reader, manifest, source, adapter.values if adapter else {})
        return generate(Cache(self.base, adapter, memory), [manifest.start], request)

    def _verify(self, source: Sequence[int], request: Request) -> None:
        request.verify()
        manifest = self.base.manifest
        verify_tokens(source, known=manifest.vocab_size, room=manifest.max_positions)
