"""What the server asks: a base with its adapters by name, which may be replaced while texts are written."""

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.adapter import Tensors
from edge_runtime.decoder import cache
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.cache import Cache
from edge_runtime.decoder.generation import Generator as TextGenerator
from edge_runtime.decoder.generation import Request, Step, generate
from edge_runtime.decoder.generation import Steps as TextSteps
from edge_runtime.decoder.http.forms import ApiError, Asked, Completion
from edge_runtime.decoder.http.prompts import prompt_of, refusal
from edge_runtime.decoder.http.turns import Steps, Turns
from edge_runtime.decoder.key_values import Floats
from edge_runtime.decoder.sampling import Sampling
from edge_runtime.decoder.together import MOST_ROWS, Together
from protocol.errors import DataError, FedgeError, printable
from protocol.misspelling import nearest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
BASE = "base"  # a base whose folder has no name of this form
# What a request that does not say gets, as OpenAI has it; a chat gets all the room that there is.
SHORT, WARM = 16, 1.0  # tokens of a completion, temperature
SEEDS = 2**64


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request that was verified: its prompt's tokens are counted, its text is not begun."""

    prompt_tokens: int
    steps: Steps
    cache: Cache


class TextService:
    """One per process; safe to ask from many threads."""

    def __init__(
        self,
        base: DecoderBase,
        adapters: Mapping[str, Path],
        *,
        queue: int,
        at_once: int = MOST_ROWS,
    ) -> None:
        """Load the adapters. ``at_once`` texts are written at the same time, ``queue`` more may wait.

        Raises ArtefactError for an adapter that does not fit, DataError for a name.
        """
        self.generator = TextGenerator(base)
        folder = base.folder.resolve().name
        self.base_name = folder if NAME.fullmatch(folder) else BASE
        self._files = dict(adapters)
        self._replacing = threading.Lock()
        self._names: tuple[str, ...] = ()
        for name, path in adapters.items():
            self.replace(name, path)
        self.turns = Turns(queue=queue, at_once=at_once, together=Together(base, most=at_once))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models: the base's and each adapter's."""
        return (self.base_name, *self._names)

    def replace(self, name: str, source: Path | Tensors) -> None:
        """Have ``name`` stand for another adapter, or for a new one.

        It is loaded whole first: a text that has begun ends with the adapter it began with, and none sees a
        part of both. Raises ArtefactError, DataError; then the old one stays.
        """
        with self._replacing:
            if not NAME.fullmatch(name) or name == self.base_name:
                raise DataError(
                    f"an adapter cannot be called `{name[:80]}`",
                    "take letters, digits, `.`, `_`, `-`, and not the base's name "
                    f"`{self.base_name}`",
                )
            if isinstance(source, Path):
                self.generator.adapters.load(name, source)
            else:
                self.generator.adapters.put(name, source)
            if name not in self._names:
                self._names = (*self._names, name)

    def reload(self) -> dict[str, str]:
        """Load every adapter's file again; by name what went wrong, "" where nothing did.

        What cannot be loaded leaves the old one. No path is named: what this says goes into logs.
        """
        return {name: self._reloaded(name, path) for name, path in self._files.items()}

    def _reloaded(self, name: str, path: Path) -> str:
        try:
            self.replace(name, path)
        except FedgeError as error:
            return error.cause.replace(printable(str(path)), "its file")
        except Exception as error:  # a lack of memory or files: the old one serves on
            return type(error).__name__
        return ""

    def verify_model(self, model: str) -> None:
        """Raises ApiError for a model that is not there."""
        if model in self.names:
            return
        near = nearest(model, self.names)
        raise ApiError(
            404,
            f"there is no model `{model[:80]}`; "
            + (f"the nearest is `{near}`" if near else "GET /v1/models lists them"),
            param="model",
            code="model_not_found",
        )

    def prepare(self, asked: Asked) -> Prepared:
        """Verify a request and read its prompt, under the adapter that its model is now. Raises ApiError."""
        self.verify_model(asked.model)
        base = self.generator.base
        name = None if asked.model == self.base_name else asked.model
        text = Cache(base, self.generator.adapters.named(name))
        prompt = prompt_of(base, asked, most=text.room)
        most = SHORT if isinstance(asked, Completion) else base.manifest.max_positions
        request = Request(
            adapter=name,
            max_tokens=asked.most or most,
            sampling=Sampling(
                temperature=WARM if asked.temperature is None else asked.temperature,
                top_p=1.0 if asked.top_p is None else asked.top_p,
            ),
            seed=None if asked.seed is None else asked.seed % SEEDS,
            stops=asked.stops,
            logprobs=asked.likeliest,
            joins=isinstance(asked, Completion),
        )
        try:
            steps = generate(text, prompt, request)
        except DataError as error:
            raise refusal(error, None) from None
        turns = _in_turns(text, prompt, steps)
        return Prepared(prompt_tokens=len(prompt), steps=turns, cache=text)

    def end(self) -> None:
        """End every text."""
        self.turns.end()


def _in_turns(
    text: Cache, prompt: list[int], steps: TextSteps
) -> Generator[Step | None, Floats | None, None]:
    """The same steps, before them a turn for each piece of a long prompt, read as the cache would."""
    for start in range(0, len(prompt) - cache.PIECE, cache.PIECE):
        with text.in_use():
            text.read(prompt[start : start + cache.PIECE])
        yield None
    yield from steps
