"""Tiny bases of any family, adapters of every form, and texts whose logits are written down."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from base_model.decoder.build import build_decoder
from base_model.decoder.sources import decoder_source
from edge_runtime.decoder.adapters import DecoderAdapter, adapter_of
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.cache import Cache
from edge_runtime.decoder.generation import Step
from edge_runtime.decoder.together import Writing
from protocol.decoder_manifest import DecoderManifest
from protocol.forms import DOWN, PREFIX, SOFT_PROMPT, UP
from tests.unit.base_model.decoder.models import write_decoder

PROMPT = [1, 5, 9, 13, 22, 40, 7, 33, 21, 60, 3, 4]
Tensors = dict[str, Any]


def built_base(
    folder: Path, family: str = "llama", *, bits: int = 4, level: int = 32
) -> DecoderBase:
    source = decoder_source(str(write_decoder(folder / "source", family)))
    build_decoder(source, bits=bits, activation_bits=level, out=folder / "base")  # type: ignore[arg-type]
    return DecoderBase.open(folder / "base", threads=1)


def factors(
    manifest: DecoderManifest, seed: int, *, rank: int = 3, only: str = "", size: float = 0.2
) -> Tensors:
    """Of the linears whose path has ``only`` in it, of ranks from 1 to ``rank``."""
    rng, tensors = np.random.default_rng(seed), {}
    for number, linear in enumerate(manifest.linears):
        if only in linear.path:
            own = 1 + number % rank
            tensors[linear.path + DOWN] = rng.normal(0, size, (linear.in_features, own))
            tensors[linear.path + UP] = rng.normal(0, size, (own, linear.out_features))
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def prompt(manifest: DecoderManifest, seed: int, *, tokens: int = 5) -> Tensors:
    rows = np.random.default_rng(seed).normal(0, 0.5, (tokens, manifest.hidden_size))
    return {SOFT_PROMPT: rows.astype(np.float32)}


def prefix(manifest: DecoderManifest, seed: int, *, tokens: int = 4) -> Tensors:
    width = manifest.prefix_slot().shape[1]
    assert isinstance(width, int)
    rows = np.random.default_rng(seed).normal(0, 0.7, (tokens, width))
    return {PREFIX: rows.astype(np.float32)}


def forms(base: DecoderBase) -> dict[str, DecoderAdapter | None]:
    """One of each form, unlike each other."""
    manifest = base.manifest
    tensors = {
        "x": factors(manifest, 1),
        "y": factors(manifest, 2, rank=5),
        "some": factors(manifest, 3, only=".1."),  # of one layer alone
        "prompt": prompt(manifest, 4),
        "prefix": prefix(manifest, 5),
        "all": factors(manifest, 6) | prompt(manifest, 7, tokens=2) | prefix(manifest, 8),
    }
    adapters = {name: adapter_of(value, base, source=name) for name, value in tensors.items()}
    return {"none": None, **adapters}


class Text:
    """A greedy text: its tokens, the logits before each, and how many of these came of a run of several."""

    def __init__(
        self,
        base: DecoderBase,
        adapter: DecoderAdapter | None,
        *,
        prompt: Sequence[int] = PROMPT,
        count: int = 64,
    ) -> None:
        self.tokens: list[int] = []
        self.logits: list[Any] = []
        self.sent = 0
        cache = Cache(base, adapter)
        self.cache = cache
        self.writing = Writing(self._steps(cache, prompt, count), cache)

    def _steps(self, cache: Cache, prompt: Sequence[int], count: int) -> Generator[Step, Any, None]:
        logits = cache.follow(prompt)
        for number in range(count):
            self.logits.append(logits)
            self.tokens.append(int(logits.argmax()))
            last = number == count - 1
            sent = yield Step(token=self.tokens[-1], text="", finish="length" if last else "")
            if last:
                return
            self.sent += sent is not None
            logits = cache.read([self.tokens[-1]]) if sent is None else sent

    def alone(self) -> Text:
        """Itself, written to its end by itself."""
        while True:
            item = self.writing.advance()
            if isinstance(item, Exception):
                raise item
            if item is not None and item.finish:
                return self


def apart(text: Text, other: Text) -> float:
    """The largest difference of logits, over the largest logit."""
    return max(
        float(np.abs(a - b).max() / np.abs(b).max())
        for a, b in zip(text.logits, other.logits, strict=True)
    )
