"""Devices that write text, of either kind, as a simulation asks them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from base_model.decoder.parity import prompt_of
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.generation import Generator, Request
from edge_runtime.seq2seq.base import Seq2SeqBase
from edge_runtime.seq2seq.generation import Translator
from protocol.chat.messages import Chat
from protocol.tasks import Task


class Writer(Protocol):
    """A base on a device."""

    @property
    def room(self) -> int:
        """Tokens that a prompt and what is written after it may have together."""
        ...

    def load(self, name: str, path: Path) -> None:
        """Load an adapter's file."""
        ...

    def prompt(self, row: Any) -> tuple[str, list[int]]:
        """(what is shown of a row's prompt, its tokens)."""
        ...

    def write(self, tokens: Sequence[int], adapter: str | None, most: int) -> str:
        """The likeliest answer, of ``most`` tokens at most."""
        ...


class _Continuing:
    """A decoder."""

    def __init__(self, base: Path) -> None:
        self._generator = Generator(DecoderBase.open(base, verify=False))

    @property
    def room(self) -> int:
        return int(self._generator.base.manifest.max_positions)

    def load(self, name: str, path: Path) -> None:
        self._generator.adapters.load(name, path)

    def prompt(self, row: str | Chat) -> tuple[str, list[int]]:
        base = self._generator.base
        tokens = prompt_of(base, row)
        if isinstance(row, Chat):
            return (row.messages[-2]["content"] if len(row.messages) > 1 else ""), tokens
        return str(base.tokenizer.decode(tokens)), tokens

    def write(self, tokens: Sequence[int], adapter: str | None, most: int) -> str:
        steps = self._generator.generate(tokens, Request(adapter=adapter, max_tokens=most))
        return "".join(step.text for step in steps).strip()


class _Translating:
    """An encoder with a decoder; ``before``: what stands before every source."""

    def __init__(self, base: Path, before: str) -> None:
        self._translator, self._before = Translator(Seq2SeqBase.open(base, verify=False)), before

    @property
    def room(self) -> int:
        return int(self._translator.base.manifest.max_positions)

    def load(self, name: str, path: Path) -> None:
        self._translator.adapters.load(name, path)

    def prompt(self, row: str) -> tuple[str, list[int]]:
        return row, self._translator.base.encode(self._before + row)

    def write(self, tokens: Sequence[int], adapter: str | None, most: int) -> str:
        steps = self._translator.generate(tokens, Request(adapter=adapter, max_tokens=most))
        return "".join(step.text for step in steps).strip()


def writer_of(base: Path, task: Task) -> Writer:
    """Of the task's kind, on a verified base."""
    if task.kind == "seq2seq-lm":
        return _Translating(base, task.prefix)
    return _Continuing(base)
