"""Tokens to text while they come: nothing is given out that a later token could change.

A token may be part of a character, and a stop string may begin in one token and end in another. The pieces
that a stream gives out are, put together, what the tokenizer makes of all tokens at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from protocol.errors import DataError
from protocol.panics import tokenizing

INCOMPLETE = "\ufffd"  # what bytes that are no character yet are decoded to
MOST_STOPS, LONGEST_STOP = 16, 500


class TextStream:
    """The text of tokens that come one by one.

    Decoded are the tokens since the last one at which a character ended, and that one: tokenizers
    treat the first of a text differently, so what a token adds is seen behind another.
    """

    def __init__(self, tokenizer: Tokenizer, *, after: int | None = None) -> None:
        """``after``: the token that the text is behind, so that a space between both is not left out."""
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._hidden = {number for number, token in added.items() if token.special}
        self._window: list[int] = []
        self._before = ""  # text of the window's first token, given out already
        if after is not None:
            self._begin_behind(after)

    def _begin_behind(self, token: int) -> None:
        """Nothing of it is given out; part of a character, or what has no text, counts as nothing."""
        word = None if token in self._hidden else self._tokenizer.id_to_token(token)
        text = self._tokenizer.decode([token])
        if word is not None and not _is_byte(word) and not text.endswith(INCOMPLETE):
            self._window, self._before = [token], text

    def push(self, token: int) -> str:
        """The text that is certain with this token and was not before; often none. Raises ArtefactError."""
        word = None if token in self._hidden else self._tokenizer.id_to_token(token)
        if word is None:  # a model may count more tokens than its tokenizer knows
            return ""
        self._window.append(token)
        if _is_byte(word):  # one wrong byte behind it changes how all the bytes before are read
            return ""
        text = self._decoded(self._window)
        if text.endswith(INCOMPLETE):
            return ""
        piece = text[len(self._before) :]
        self._window, self._before = [token], self._decoded([token])
        return piece

    def finish(self) -> str:
        """What was not certain, now that no token follows."""
        rest = self._decoded(self._window)[len(self._before) :] if self._window else ""
        self._window, self._before = [], ""
        return rest

    def _decoded(self, tokens: list[int]) -> str:
        with tokenizing("the base's tokenizer fails", "fetch the base again"):
            return self._tokenizer.decode(tokens)


def _is_byte(word: str) -> bool:
    """Whether a token stands for one byte, as `<0x0A>`."""
    return len(word) == 6 and word.startswith("<0x") and word.endswith(">")


class StopStrings:
    """Text up to the first of some strings, of which nothing is given out.

    First is what ends first, and of these what begins first; so it does not matter in which pieces the
    text comes. ``stopped`` is the string that ended the text.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises DataError for an empty string, one beyond all measure, or too many."""
        if len(stops) > MOST_STOPS:
            raise DataError(f"{len(stops)} stop strings", f"give at most {MOST_STOPS}")
        for index, stop in enumerate(stops):
            if not 0 < len(stop) <= LONGEST_STOP:
                raise DataError(
                    f"stop string {index} has {len(stop)} characters",
                    f"give 1 to {LONGEST_STOP}",
                )
        self._stops = tuple(stops)
        self._held = ""
        self.stopped: str | None = None

    def push(self, piece: str) -> str:
        """The text that can no longer be part of a stop string."""
        if self.stopped is not None:
            return ""
        text = self._held + piece
        if ending := self._first(text):
            begin, self.stopped = ending
            self._held = ""
            return text[:begin]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        certain = len(text) - held
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """What was held back, now that no text follows."""
        rest, self._held = self._held, ""
        return rest

    def _first(self, text: str) -> tuple[int, str] | None:
        """(where it begins, stop string) of the first to end in ``text``."""
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(ends)[1:] if ends else None


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
