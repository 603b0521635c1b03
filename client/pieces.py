"""A row of text in pieces, of which some are to be learnt: what a device reads, and what it is to write.

On a device the model reads a prompt's tokens and writes its own behind them. So a row is encoded piece by
piece: the tokens of a prompt are those of the prompt alone, whatever follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from protocol.chat.messages import ASSISTANT, Chat
from protocol.chat.template import rendered, special_texts
from protocol.errors import ArtefactError
from protocol.panics import tokenizing


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A part of a text; ``counts``: it is to be learnt. ``ends``: the text ends with it."""

    text: str
    counts: bool
    ends: bool = False


def pieces_of(
    text: str | Chat, template: str | None, special: Mapping[str, str]
) -> tuple[bool, list[Piece]]:
    """(whether a template wrote the special tokens, the pieces in their order).

    Raises ArtefactError for a template that writes an answer otherwise than it asked for it, DataError for a
    chat that it refuses.
    """
    if not isinstance(text, Chat):
        return False, [Piece(text=text, counts=True, ends=True)]
    if template is None:  # a prompt and its completion
        *asked, answer = (message["content"] for message in text.messages)
        return False, [
            *(Piece(text=each, counts=False) for each in asked),
            Piece(text=answer, counts=True, ends=True),
        ]
    return True, _chat_pieces(text, template, special)


def _chat_pieces(chat: Chat, template: str, special: Mapping[str, str]) -> list[Piece]:
    pieces: list[Piece] = []
    written = ""
    for at, message in enumerate(chat.messages):
        if message["role"] != ASSISTANT:
            continue
        before, whole = Chat(messages=chat.messages[:at]), Chat(messages=chat.messages[: at + 1])
        # an answer that nobody asked for: what a template writes before the first message is its lead
        lead = (
            rendered(template, before, special, private=True)
            if at
            else _lead(template, whole, special)
        )
        text = rendered(template, whole, special, answering=False, private=True)
        if not lead.startswith(written) or not text.startswith(lead):
            raise ArtefactError(
                "the base's chat template writes earlier messages otherwise once an answer is there",
                'give one answer in a row, or use task.form = "prompt" or "text"',
            )
        answer = text[len(lead) :]
        if "".join(message["content"].split()) not in "".join(answer.split()):
            raise ArtefactError(
                "the base's chat template writes an answer otherwise than the row has it",
                'use task.form = "prompt" or "text", or a base whose template keeps what is said',
            )
        learnt = answer.rstrip()  # a device ends at the token before such blanks
        pieces.append(Piece(text=lead[len(written) :], counts=False))
        pieces.append(Piece(text=learnt, counts=True))
        if blank := answer[len(learnt) :]:
            pieces.append(Piece(text=blank, counts=False))
        written = text
    return pieces


def _lead(template: str, chat: Chat, special: Mapping[str, str]) -> str:
    """What stands before the content of a chat that begins with an answer."""
    text = rendered(template, chat, special, answering=False, private=True)
    lead, content, _ = text.partition(chat.messages[0]["content"].strip())
    return lead if content else text  # without it, the answer is found to be written otherwise


class TokenPieces:
    """The tokens of pieces, by a tokenizer that neither cuts nor pads."""

    def __init__(self, tokenizer: Any, ends: Sequence[int], *, source: str) -> None:
        """``ends``: tokens that end a text; the first of them is written. ``source``: of the tokenizer."""
        self._tokenizer, self._ends, self._source = tokenizer, tuple(ends), source

    def special_texts(self, begin: int | None) -> dict[str, str]:
        """By the names that templates have for them."""
        first, last = (
            None if token is None else self._tokenizer.id_to_token(token)
            for token in (begin, self._ends[0] if self._ends else None)
        )
        return special_texts(first, last)

    def encode(self, written: tuple[bool, Sequence[Piece]]) -> tuple[list[int], list[bool]]:
        """(token ids, which of them count) of what :func:`pieces_of` gives."""
        by_template, pieces = written
        whole = list(accumulate(piece.text for piece in pieces))
        special = not by_template
        ids: list[int] = []
        counts: list[bool] = []
        for piece, text in zip(pieces, whole, strict=True):
            tokens = self._tokens(text, special=special)
            if tokens[: len(ids)] != ids:  # a token of the whole would reach over both
                tokens = ids + self._tokens(piece.text, special=False)
            counts += [piece.counts] * (len(tokens) - len(ids))
            ids = tokens
            if piece.ends and self._ends:
                ids, counts = [*ids, self._ends[0]], [*counts, True]
        return ids, counts

    def read(self, text: str) -> list[int]:
        """Of a text that is read and not gone on with, as the tokenizer has it."""
        with self._named():
            return list(self._tokenizer.encode(text).ids)

    def whole(self, text: str) -> list[int]:
        """Of a text, with what the tokenizer puts around it, and the token that ends texts behind it."""
        ids = self._tokens(text, special=True)
        return [*ids, self._ends[0]] if ids and self._ends else ids

    def _tokens(self, text: str, *, special: bool) -> list[int]:
        """Of ``text``, with what the tokenizer puts before it, without what it puts behind."""
        with self._named():
            encoding = self._tokenizer.encode(text, add_special_tokens=special)
        ids = list(encoding.ids)
        mask = encoding.special_tokens_mask
        while special and len(ids) > 1 and mask[len(ids) - 1] and ids[-1] in self._ends:
            ids.pop()
        return ids

    def _named(self) -> AbstractContextManager[None]:
        what = f"{self._source}: its tokenizer fails"
        return tokenizing(what, "fetch the base again", private=True)
