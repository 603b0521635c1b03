"""Writing text: a prompt's tokens to steps, each a token with the text that it makes certain."""

from __future__ import annotations

from collections import abc, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from edge_runtime.decoder import cache as reading
from edge_runtime.decoder.adapters import Adapters, DecoderAdapter
from edge_runtime.decoder.base import DecoderBase, WritingBase
from edge_runtime.decoder.cache import Cache
from edge_runtime.decoder.key_values import Floats
from edge_runtime.decoder.sampling import GREEDY, MOST_NAMED, Sampling, choose, named
from edge_runtime.decoder.text import StopStrings, TextStream
from edge_runtime.decoder.together import MOST_ROWS, Together, Writing
from protocol.errors import DataError

MAX_TOKENS = 256
Finish = Literal["", "end", "stop", "length", "context"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is asked for.

    ``adapter``: name of a loaded one, None being the base alone. ``seed``: the same one gives the same
    tokens; None takes one of the system's. ``stops``: strings that end the text and are not in it.
    ``logprobs``: None for none, else of the chosen token and of as many of the likeliest. ``joins``: the text
    is to be put behind the prompt's, so that a space at its beginning counts.
    """

    adapter: str | None = None
    max_tokens: int = MAX_TOKENS
    sampling: Sampling = GREEDY
    seed: int | None = None
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    joins: bool = False

    def verify(self) -> None:
        """Raises DataError that names the value which is out of bounds."""
        self.sampling.verify()
        StopStrings(self.stops)
        if self.max_tokens < 1:
            raise DataError(f"{self.max_tokens} tokens are asked for", "ask for 1 or more")
        if self.seed is not None and self.seed < 0:
            raise DataError(f"the seed is {self.seed}", "take 0 or more")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_NAMED:
            raise DataError(
                f"the log-probabilities of {self.logprobs} tokens are asked for",
                f"ask for 0 to {MOST_NAMED}",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A token that was written, and what it makes certain.

    ``text``: put together they are the answer. ``finish``: of the last step, why it is the last: a token
    that ends texts (`end`), a stop string (`stop`), as many tokens as asked for (`length`) or as the base
    can hold (`context`). ``logprob`` in nats, and ``top`` (token, logprob), where they are asked for.
    """

    token: int
    text: str
    finish: Finish = ""
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


Steps = abc.Generator[Step, Floats | None, None]
TurnSteps = abc.Generator[Step | None, Floats | None, None]


@dataclass(frozen=True, kw_only=True)
class Text:
    """What is to be written, not begun: its ``steps``, None where a turn wrote nothing.

    ``cache``: whoever has read a step's token into it sends the logits behind it; None where nobody may.
    """

    steps: Iterator[Step | None]
    cache: Cache | None = None


def generate(cache: Cache, prompt: Sequence[int], request: Request) -> Steps:
    """Write what follows ``prompt``, under the cache's adapter (``request.adapter`` is not looked at).

    The prompt is the whole text so far; what the cache has read of it is not read again. Closing the iterator
    ends the work, at the latest with the next token. Whoever has read a step's token into the cache sends the
    logits behind it. (``edge_runtime.decoder.together``) Raises DataError before anything runs.
    """
    request.verify()
    cache.verify(prompt)
    return _steps(cache, list(prompt), request)


def _steps(cache: Cache, prompt: list[int], request: Request) -> Steps:
    room = cache.room - len(prompt) + 1
    writer = _Writer(cache.base, request, room=room, after=prompt[-1] if request.joins else None)
    with cache.in_use():
        logits = cache.follow(prompt)
        while True:
            step = writer.step(logits)
            sent = yield step
            if step.finish:
                return
            logits = cache.read([step.token]) if sent is None else sent


class _Writer:
    """Chooses tokens, and tells what text they make and when it ends; ``room``: of tokens, in the context."""

    def __init__(
        self, base: WritingBase, request: Request, *, room: int, after: int | None = None
    ) -> None:
        self._ends = frozenset(base.manifest.ends)
        self._request, self._room = request, room
        self._rng = np.random.default_rng(request.seed)
        self._stream = TextStream(base.tokenizer, after=after)
        self._stops = StopStrings(request.stops)
        self._count = 0

    def step(self, logits: Floats) -> Step:
        token = choose(logits, self._request.sampling, self._rng)
        self._count += 1
        text = "" if token in self._ends else self._stops.push(self._stream.push(token))
        finish = self._finish(token)
        if finish and finish != "stop":
            text += self._stops.push(self._stream.finish())
            finish = self._finish(token)  # the last characters may be a stop string's
            text += self._stops.finish()
        count = self._request.logprobs
        logprob, top = (None, ()) if count is None else named(logits, token, count)
        return Step(token=token, text=text, finish=finish, logprob=logprob, top=top)

    def _finish(self, token: int) -> Finish:
        if self._stops.stopped is not None:
            return "stop"
        if token in self._ends:
            return "end"
        if self._count >= self._request.max_tokens:
            return "length"
        return "context" if self._count >= self._room else ""


class Conversation:
    """A text that grows by turns: what a turn shares with the one before it is read once.

    Only under the same adapter, which is looked up at every turn: once its name stands for another one, or a
    turn names another, the text is read anew.
    """

    def __init__(self, base: DecoderBase, adapters: Adapters) -> None:
        self._base, self._adapters = base, adapters
        self._cache = Cache(base)

    @property
    def held(self) -> int:
        """Tokens that need not be read again under the adapter of the last turn."""
        return len(self._cache.tokens)

    def steps(self, prompt: Sequence[int], request: Request) -> Steps:
        """As :func:`generate`, under the adapter that the request names. Raises DataError."""
        adapter = self._adapters.named(request.adapter)
        if self._cache.adapter is not adapter:
            self._cache = Cache(self._base, adapter)
        return generate(self._cache, prompt, request)


class Writer(Protocol):
    """A base that writes text, with the adapters that are loaded for it: what a service or a command asks."""

    @property
    def base(self) -> WritingBase:
        """Whose tokens these are."""
        ...

    @property
    def adapters(self) -> Adapters:
        """By the names that requests give."""
        ...

    def room(self, adapter: DecoderAdapter | None) -> int:
        """Tokens that a prompt may have under an adapter."""
        ...

    def generate(self, prompt: Sequence[int], request: Request) -> Iterator[Step]:
        """One text under the adapter that the request names. Raises DataError."""
        ...

    def text(self, prompt: Sequence[int], request: Request, adapter: DecoderAdapter | None) -> Text:
        """The same under this adapter, whatever the request names.

        Raises DataError before anything runs; closing the steps ends the work.
        """
        ...


class Generator:
    """The writer of a decoder."""

    def __init__(self, base: DecoderBase) -> None:
        self.base, self.adapters = base, Adapters(base)

    def room(self, adapter: DecoderAdapter | None) -> int:
        """Tokens that a text may have, prompt and all."""
        return self.base.manifest.max_positions - (adapter.positions if adapter else 0)

    def text(self, prompt: Sequence[int], request: Request, adapter: DecoderAdapter | None) -> Text:
        """The steps, before them a None for each piece of a long prompt, read as the cache would."""
        cache = Cache(self.base, adapter)
        steps = _in_turns(cache, list(prompt), generate(cache, prompt, request))
        return Text(steps=steps, cache=cache)

    def conversation(self) -> Conversation:
        """A new one; each has a cache of its own."""
        return Conversation(self.base, self.adapters)

    def generate(self, prompt: Sequence[int], request: Request) -> Steps:
        """One text, with a cache that is gone afterwards. Raises DataError."""
        return self.conversation().steps(prompt, request)

    def together(
        self, asked: Sequence[tuple[Sequence[int], Request]], *, most: int = MOST_ROWS
    ) -> Iterator[tuple[int, Step | Exception]]:
        """Several texts, (prompt, request) each, under adapters of their own: (which of them, its next step).

        At most ``most`` are written at the same time; a place that becomes free is the next one's. An error
        ends its own text, in the place of a step. Raises DataError before anything runs.
        """
        if most < 1:
            raise DataError(f"{most} texts at the same time are asked for", "ask for 1 or more")
        texts: deque[tuple[int, Writing]] = deque()
        for number, (prompt, request) in enumerate(asked):
            cache = Cache(self.base, self.adapters.named(request.adapter))
            texts.append((number, Writing(generate(cache, prompt, request), cache)))
        return _rounds(Together(self.base, most=most), texts, most)


def _in_turns(text: Cache, prompt: list[int], steps: Steps) -> TurnSteps:
    """The same steps, before them a turn for each piece of a long prompt, read as the cache would."""
    for start in range(0, len(prompt) - reading.PIECE, reading.PIECE):
        with text.in_use():
            text.read(prompt[start : start + reading.PIECE])
        yield None
    yield from steps


def _rounds(
    together: Together, waiting: deque[tuple[int, Writing]], most: int
) -> Iterator[tuple[int, Step | Exception]]:
    writing: list[tuple[int, Writing]] = []
    while waiting or writing:
        while waiting and len(writing) < most:
            writing.append(waiting.popleft())
        items = together.advance([text for _, text in writing])
        for (number, text), item in zip(tuple(writing), items, strict=True):
            if isinstance(item, Exception) or (item is not None and item.finish):
                text.close()
                writing.remove((number, text))
            if item is not None:
                yield number, item
