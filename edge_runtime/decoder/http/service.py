"""What the server asks: a base with its adapters by name, which may be replaced while texts are written."""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_runtime.adapter import Tensors
from edge_runtime.backends.writing import writer_of
from edge_runtime.decoder.adapters import DecoderAdapter
from edge_runtime.decoder.base import DecoderBase, WritingBase
from edge_runtime.decoder.cache import Cache
from edge_runtime.decoder.generation import Request, Writer
from edge_runtime.decoder.http.forms import ApiError, Asked, Completion
from edge_runtime.decoder.http.prompts import prompt_of, refusal
from edge_runtime.decoder.http.turns import Steps, Turns
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
    """A request that was verified: its prompt's tokens are counted, its text is not begun.

    ``facts``: what its answer says of what writes it, beside the model's name.
    """

    prompt_tokens: int
    steps: Steps
    cache: Cache | None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a model was when it was asked for. ``watched`` sees the steps of its texts."""

    adapter: DecoderAdapter | None
    watched: Callable[[Steps], Steps] = iter
    facts: Mapping[str, Any] = field(default_factory=dict)


class Texts(ABC):
    """One per process; safe to ask from many threads. Which models there are is a subclass's."""

    def __init__(self, writer: Writer, *, queue: int, at_once: int = MOST_ROWS) -> None:
        """``at_once`` texts are written at the same time, ``queue`` more may wait."""
        self.writer = writer
        base = writer.base
        together = Together(base, most=at_once) if isinstance(base, DecoderBase) else None
        self.turns = Turns(queue=queue, at_once=at_once, together=together)

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Of the models."""

    @abstractmethod
    def held(self, model: str) -> Held:
        """A model that :meth:`verify_model` knows. Raises ApiError where it cannot write now."""

    def facts(self, model: str) -> Mapping[str, Any]:
        """What the list of models says of one beside its name."""
        return {}

    def health(self) -> dict[str, Any]:
        """Plain values; ``status`` is ``ok`` where it can write."""
        return {"status": "ok", "places": self.turns.places}

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
        base, held = self.writer.base, self.held(asked.model)
        prompt = prompt_of(base, asked, most=self.writer.room(held.adapter))
        most = SHORT if isinstance(asked, Completion) else base.manifest.max_positions
        request = Request(
            max_tokens=asked.most or most,
            sampling=Sampling(
                temperature=WARM if asked.temperature is None else asked.temperature,
                top_p=1.0 if asked.top_p is None else asked.top_p,
            ),
            seed=None if asked.seed is None else asked.seed % SEEDS,
            stops=asked.stops,
            logprobs=asked.likeliest,
            joins=isinstance(asked, Completion) and isinstance(base, DecoderBase),
        )
        try:
            text = self.writer.text(prompt, request, held.adapter)
        except DataError as error:
            raise refusal(error, None) from None
        return Prepared(
            prompt_tokens=len(prompt),
            steps=held.watched(text.steps),
            cache=text.cache,
            facts=held.facts,
        )

    def end(self) -> None:
        """End every text."""
        self.turns.end()


class TextService(Texts):
    """The base and adapters of files, which may be loaded again."""

    def __init__(
        self,
        base: WritingBase,
        adapters: Mapping[str, Path],
        *,
        queue: int,
        at_once: int = MOST_ROWS,
    ) -> None:
        """Load the adapters. Raises ArtefactError for one that does not fit, DataError for a name."""
        self.generator = writer_of(base)
        folder = base.folder.resolve().name
        self.base_name = folder if NAME.fullmatch(folder) else BASE
        self._files = dict(adapters)
        self._replacing = threading.Lock()
        self._names: tuple[str, ...] = ()
        for name, path in adapters.items():
            self.replace(name, path)
        super().__init__(self.generator, queue=queue, at_once=at_once)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models: the base's and each adapter's."""
        return (self.base_name, *self._names)

    def held(self, model: str) -> Held:
        """The base alone, or an adapter."""
        name = None if model == self.base_name else model
        return Held(adapter=self.writer.adapters.named(name))

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
