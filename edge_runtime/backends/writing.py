"""A base that writes text: a decoder, or one that turns a text into another.

No copy of its graph is mapped: a process that writes gathers its weights into huge pages, which a mapped file
has not. (docs/adr/0054, 0061)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.base import read_any_manifest
from edge_runtime.decoder.adapters import DecoderAdapter, load_decoder_adapter
from edge_runtime.decoder.base import DecoderBase, WritingBase
from edge_runtime.decoder.cache import verify_tokens
from edge_runtime.decoder.chat import chat_prompt
from edge_runtime.decoder.generation import Generator, Request, Step, Writer
from edge_runtime.probe import (
    MOST_TIMED,
    MOST_TOKENS,
    REMEDY,
    Clock,
    Examined,
    Golden,
    Probe,
    least_median_ms,
    unreadable,
)
from edge_runtime.seq2seq.base import Seq2SeqBase
from edge_runtime.seq2seq.generation import Translator
from protocol.chat.messages import chat_from
from protocol.decoder_manifest import DecoderManifest, WritingManifest
from protocol.errors import ArtefactError, DataError, DeliveryError

if TYPE_CHECKING:
    from protocol.transparency.policy import Policy

ONCE = Request(max_tokens=1)


class WritingBackend:
    """Writes through ``writer``, under the adapter that each text begins with."""

    ITEM = "token"

    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    def load(self, folder: Path, policy: Policy | None = None) -> DecoderAdapter:
        """As `Backend.load`: the answer is a token behind the vocabulary's first."""
        adapter = load_decoder_adapter(folder, self.writer.base, policy=policy)
        for _ in self.writer.text([0], ONCE, adapter).steps:
            pass
        return adapter

    def questions(self, probe: Probe) -> Sequence[list[int]]:
        """As `Backend.questions`: tokens of prompts, for which the base alone has room."""
        if probe.kind != "texts":
            raise unreadable(f"its rows have {probe.kind}, and the base writes text")
        return [self._prompt(at, row) for at, row in enumerate(probe.rows, 1)]

    def examine(
        self, adapter: DecoderAdapter, probe: Probe, questions: Sequence[Any], clock: Clock
    ) -> Examined:
        """As `Backend.examine`: the likeliest tokens, so that a release shows the same each time."""
        request = Request(max_tokens=probe.max_tokens or MOST_TOKENS)
        wrong, first = {}, []
        for at, (row, prompt) in enumerate(zip(probe.rows, questions, strict=True)):
            start = clock()
            text, tokens = self._written(at, prompt, request, adapter)
            first.append((clock() - start) / tokens)
            if str(row.contains) not in text:
                wrong[at] = f"what it must contain is not in the {tokens} tokens that were written"

        def passes() -> Iterator[Sequence[float]]:
            yield first
            while True:
                seconds = []
                for at, prompt in enumerate(questions[:MOST_TIMED]):
                    start = clock()
                    _, tokens = self._written(at, prompt, request, adapter)
                    seconds.append((clock() - start) / tokens)
                yield seconds

        return Examined(wrong=wrong, latency_ms=least_median_ms(passes(), probe.most_latency_ms))

    def _prompt(self, number: int, row: Golden) -> list[int]:
        base = self.writer.base
        try:
            tokens = self._tokens(row)
        except DataError:
            raise unreadable(f"row {number} is no text or chat that the base can read") from None
        try:
            verify_tokens(tokens, known=base.manifest.vocab_size, room=self.writer.room(None))
        except DataError as error:  # of numbers of tokens alone
            raise unreadable(f"row {number}: {error.cause}") from None
        return tokens

    def _tokens(self, row: Golden) -> list[int]:
        if row.messages is None:
            return self.writer.base.prompt(str(row.text))
        chat = chat_from([message.model_dump() for message in row.messages])
        return chat_prompt(self.writer.base, chat)

    def _written(
        self, at: int, prompt: Sequence[int], request: Request, adapter: DecoderAdapter
    ) -> tuple[str, int]:
        """The text, and how many tokens it took."""
        try:
            turns = self.writer.text(prompt, request, adapter).steps
        except DataError as error:  # the adapter's own positions leave no room
            cause = f"row {at + 1} of the probe: {error.cause}"
            raise DeliveryError("probe.labels", cause, REMEDY) from None
        steps: list[Step] = [step for step in turns if step is not None]
        return "".join(step.text for step in steps), len(steps)


def writer_of(base: WritingBase) -> Writer:
    """What writes with an opened base."""
    if isinstance(base, Seq2SeqBase):
        return Translator(base)
    assert isinstance(base, DecoderBase)
    return Generator(base)


def open_writing(base: Path, *, threads: int, cache: Path | None = None) -> WritingBackend:
    """Open a base that writes text; nothing of it goes to ``cache``. Raises ArtefactError for any other."""
    manifest = read_any_manifest(base)
    if not isinstance(manifest, WritingManifest):
        raise ArtefactError(
            f"{base} is not a base that writes text",
            "take one that was built from a decoder; `fedge edge infer` answers with others, and `fedge edge "
            "draw` with one that draws",
        )
    opener = DecoderBase if isinstance(manifest, DecoderManifest) else Seq2SeqBase
    return WritingBackend(writer_of(opener.open(base, threads=threads)))
