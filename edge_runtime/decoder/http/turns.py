"""Texts that are written at the same time: they take turns, a token each, on one thread.

A token costs reading all of the base's weights, whoever it is for: two runs at once would halve each
other's speed and write no more. So those that are being written take their turns together, in one run
(``edge_runtime.decoder.together``), and a prompt is read in turns between, a piece at a time. On one thread a
text can be ended between two tokens, and its cache is never in two hands.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from edge_runtime.decoder.cache import Cache
from edge_runtime.decoder.generation import Step
from edge_runtime.decoder.together import MOST_ROWS, Together, Writing

END_S = 10.0  # for the turn that runs when all is to end
Tell = Callable[[Step | Exception], None]
Steps = Iterator[Step | None]  # None: a turn that wrote nothing


class FullError(Exception):
    """There is no place: as many texts are written and wait as may."""


class EndedError(Exception):
    """The server ends before the text is whole."""


class LeftError(Exception):
    """Nobody wants the text any more."""


class Turn:
    """A place among the texts."""

    def __init__(self) -> None:
        self.state: Literal["reserved", "waiting", "writing", "over"] = "reserved"
        self.left = False
        self.text = Writing(iter(()))
        self.tell: Tell = lambda _: None

    def hear(self, item: Step | Exception) -> None:
        """Hand over what came of a turn. Whoever cannot take it has left."""
        if self.left:
            return
        try:
            self.tell(item)
        except Exception:
            self.left = True


class Turns:
    """``at_once`` texts take turns, ``queue`` more wait for a place among them. For many threads.

    ``together``: reads the tokens of those that have a cache; without it each reads its own.
    """

    def __init__(
        self, *, queue: int, at_once: int = MOST_ROWS, together: Together | None = None
    ) -> None:
        self._at_once, self._most = at_once, at_once + queue
        self._together = together
        self._places = 0
        self._waiting: deque[Turn] = deque()
        self._writing: deque[Turn] = deque()
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="write-texts", daemon=True)
        self._thread.start()

    @property
    def places(self) -> int:
        """How many are taken."""
        return self._places

    @contextmanager
    def place(self) -> Iterator[Turn]:
        """One that is free again behind the context, or with the token that is being written then.

        Raises FullError.
        """
        with self._changed:
            if self._ended or self._places >= self._most:
                raise FullError
            self._places += 1
        turn = Turn()
        try:
            yield turn
        finally:
            self.leave(turn)

    def begin(self, turn: Turn, steps: Steps, tell: Tell, cache: Cache | None = None) -> None:
        """Write a text: ``tell`` gets its steps, or the error that ends it, on the thread that writes.

        ``cache``: where the steps are those of one.
        """
        with self._changed:
            if turn.state != "reserved" or self._ended:
                raise EndedError
            turn.text, turn.tell, turn.state = Writing(steps, cache), tell, "waiting"
            self._waiting.append(turn)
            self._changed.notify()

    def leave(self, turn: Turn) -> None:
        """Nobody wants the text any more, or it is whole. May be repeated."""
        with self._changed:
            turn.left = True
            if turn.state == "waiting":
                self._waiting.remove(turn)
                turn.text.close()
            if turn.state in ("waiting", "reserved"):
                self._over(turn)

    def end(self) -> None:
        """End the thread, and with it every text."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(END_S)

    def _over(self, turn: Turn) -> None:
        self._places -= 1
        turn.state = "over"

    def _work(self) -> None:
        while turns := self._next():
            for turn, item in zip(turns, self._taken(turns), strict=True):
                self._took(turn, item)
        for turn in (*self._writing, *self._waiting):
            turn.hear(EndedError())
            turn.text.close()

    def _taken(self, turns: Sequence[Turn]) -> list[Step | Exception | None]:
        """What comes of the turns: a step each, or what ends the text."""
        here = [turn.text for turn in turns if not turn.left]
        together = self._together
        items = together.advance(here) if together else [text.advance() for text in here]
        came = {id(text): item for text, item in zip(here, items, strict=True)}
        return [came.get(id(turn.text), LeftError()) for turn in turns]

    def _took(self, turn: Turn, item: Step | Exception | None) -> None:
        over = isinstance(item, Exception) or (item is not None and item.finish != "")
        if over:
            turn.text.close()
        with self._changed:
            if over:
                self._over(turn)
            else:
                self._writing.append(turn)
        if item is not None:  # the last when its place is free: who has it may ask again at once
            turn.hear(item)

    def _next(self) -> list[Turn]:
        """Whose turn it is: the next one's, and with it all others' whose next token is known too.

        Empty at the end.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._waiting or self._writing)
            if self._ended:
                return []
            while self._waiting and len(self._writing) < self._at_once:
                turn = self._waiting.popleft()
                turn.state = "writing"
                self._writing.append(turn)
            first = self._writing.popleft()
            if self._together is None or first.text.cache is None:
                return [first]
            turns = [first, *(turn for turn in self._writing if turn.text.cache is not None)]
            self._writing = deque(turn for turn in self._writing if turn.text.cache is None)
            return turns
