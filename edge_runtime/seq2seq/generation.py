"""Turning a text into another: it is read once, then written token by token over a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edge_runtime.decoder.adapters import Adapters
from edge_runtime.decoder.cache import Cache, verify_tokens
from edge_runtime.decoder.generation import Request, Step, generate
from edge_runtime.seq2seq.base import Seq2SeqBase, memory_of


class Translator:
    """A base with the adapters that are loaded for it: what a service or a command asks."""

    def __init__(self, base: Seq2SeqBase) -> None:
        self.base, self.adapters = base, Adapters(base)

    def generate(self, source: Sequence[int], request: Request) -> Iterator[Step]:
        """Write what the base makes of the tokens of ``source``, both under the request's adapter.

        Closing the iterator ends the work, at the latest with the next token. Raises DataError before
        anything runs, ArtefactError when ONNX Runtime does.
        """
        request.verify()
        manifest = self.base.manifest
        verify_tokens(source, known=manifest.vocab_size, room=manifest.max_positions)
        adapter = self.adapters.named(request.adapter)
        filled = adapter.values if adapter else {}
        memory = memory_of(self.base.reader, manifest, source, filled)
        cache = Cache(self.base, adapter, memory)
        return generate(cache, [manifest.start], request)
