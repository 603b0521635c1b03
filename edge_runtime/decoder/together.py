"""The next tokens of several texts in one run, under adapters of their own. (docs/adr/0060)

A run reads all of the base's weights, for however many rows. Rows are independent of each other but for
rounding: how a library adds depends on how many there are, so that logits are the same within some 3e-5 of
the largest, and a text whose likeliest tokens are nearly equal may go on otherwise than alone. Where linears
round what they read to 8 bits, that difference is rounded too, to some hundredths: such a text under low
ranks is as good as the one alone, but after some tokens another.

Whatever goes wrong in a run of several costs no text anything: each then reads by itself.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from edge_runtime.decoder.adapters import DecoderAdapter
from edge_runtime.decoder.base import WritingBase
from edge_runtime.decoder.cache import Cache
from edge_runtime.decoder.key_values import ERRORS, Floats, run, value_of
from edge_runtime.decoder.rows import Rows, SideBySide, low_rank
from protocol.decoder_manifest import IDS, LOGITS, MASK, DecoderManifest, WritingManifest
from protocol.errors import ArtefactError, DataError, MachineError
from protocol.forms import DOWN, SOFT_PROMPT, UP

if TYPE_CHECKING:
    from edge_runtime.decoder.generation import Step

MOST_ROWS = 8
RANKED = "ranked"  # the group of texts that may be under adapters of several low ranks
FEW, FEW_OF_FLOATS = 2, 4


class Writing:
    """A text that is being written: its steps, and the token that its cache is to read next, if any."""

    def __init__(self, steps: Iterator[Step | None], cache: Cache | None = None) -> None:
        """``steps``: those of ``cache``, which take the logits behind a step's token where they are sent.

        Without a cache they are never sent. None is a turn that wrote nothing.
        """
        self._steps, self._cache = steps, cache
        self.token: int | None = None

    @property
    def cache(self) -> Cache | None:
        """The one that :attr:`token` is to be read into, if there is one."""
        return None if self.token is None else self._cache

    def advance(self, logits: Floats | None = None) -> Step | Exception | None:
        """The next step, or what ends the text. ``logits``: behind the token, where it has been read."""
        try:
            step: Step | None
            if logits is not None and isinstance(self._steps, Generator):
                step = self._steps.send(logits)
            else:
                step = next(self._steps)
        except Exception as error:  # whatever ends this text must not end the others
            self.token = None
            return error
        self.token = None if step is None else step.token
        return step

    def close(self) -> None:
        """Give up what the text holds: its cache above all."""
        if isinstance(self._steps, Generator):
            self._steps.close()
        self._steps, self._cache, self.token = iter(()), None, None


class Together:
    """Runs of several texts of one base. For one thread."""

    def __init__(self, base: WritingBase, *, most: int = MOST_ROWS) -> None:
        """``most``: texts of one run; what is more is read in a second one."""
        self._base, self._most = base, most
        self._least = fewest_rows(base.manifest)
        manifest = base.manifest
        self._ranked = isinstance(manifest, DecoderManifest) and manifest.is_ranked
        self._batches: dict[Any, _Batch] = {}

    def advance(self, texts: Sequence[Writing]) -> list[Step | Exception | None]:
        """The next step of each, or what ends it, as :meth:`Writing.advance`."""
        if len(texts) < self._least:
            self._batches.clear()
            return [text.advance() for text in texts]
        sent = self._read([(text, text.cache, text.token) for text in texts])
        return [text.advance(sent.get(id(text))) for text in texts]

    def _read(self, texts: Sequence[tuple[Writing, Cache | None, int | None]]) -> dict[int, Floats]:
        """Logits (vocabulary,) behind the tokens of those that were read together."""
        groups: dict[Any, list[tuple[Writing, Cache, int]]] = {}
        for text, cache, token in texts:
            if cache is not None and token is not None and self._fits(cache, token):
                groups.setdefault(self._group(cache), []).append((text, cache, token))
        parts = {
            (group, start): members[start : start + self._most]
            for group, members in groups.items()
            for start in range(0, len(members), self._most)
        }
        parts = {key: members for key, members in parts.items() if len(members) >= self._least}
        if not parts or not self._base.runs_rows:
            self._batches.clear()
            return {}
        self._batches = {
            key: self._batches.get(key) or _Batch(self._base, most=self._most) for key in parts
        }
        sent: dict[int, Floats] = {}
        for key, members in parts.items():
            read = self._batches[key].read([(cache, token) for _, cache, token in members])
            if read is not None:
                sent |= {id(text): row for (text, _, _), row in zip(members, read, strict=True)}
        return sent

    def _fits(self, cache: Cache, token: int) -> bool:
        """Whether it may be a row; if not, its own reading says why."""
        if not self._base.in_place or cache.base is not self._base or not cache.has_begun:
            return False
        try:
            cache.verify([token], before=len(cache.tokens))
        except DataError:
            return False
        return True

    def _group(self, cache: Cache) -> Any:
        """What is the same for texts that may be rows of one run."""
        adapter, ranked = cache.adapter, self._ranked
        if adapter is None or not _acts(adapter):
            return RANKED if ranked else None
        mixes = all(name.endswith((DOWN, UP)) for name in adapter.values if name != SOFT_PROMPT)
        return RANKED if ranked and mixes else adapter


def fewest_rows(manifest: WritingManifest) -> int:
    """Rows of a run that is faster than a run for each.

    ONNX Runtime multiplies one row by codes of 4 bits as they are; for more, it widens them first, if rows
    are not rounded: two rows cost more than twice one, four less than four times.
    """
    widens = manifest.bits == 4 and manifest.graph.accuracy_level == 0
    return FEW_OF_FLOATS if widens else FEW


class _Batch:
    """Rows that are read in one run, and what is bound for it."""

    def __init__(self, base: WritingBase, *, most: int) -> None:
        self._base, self._rows = base, Rows(base.manifest, most=most)
        self._options = ort.RunOptions()
        self._options.log_severity_level = ERRORS
        self._binding: Any = None
        self._fixed: tuple[list[DecoderAdapter], bool] | None = None  # what was bound for good
        self._beside: SideBySide | None = None
        self._values: list[Any] = []

    def read(self, texts: Sequence[tuple[Cache, int]]) -> list[Floats] | None:
        """Read a token into each; the logits (vocabulary,) behind them. None if it fails: none was read."""
        total = 1 + max(cache.memory.length for cache, _ in texts)
        by_memory = {id(cache.memory): (cache, token) for cache, token in texts}
        try:
            order = self._rows.hold([cache.memory for cache, _ in texts], total)
            rows = [by_memory[id(memory)] for memory in order]
            logits = self._run(rows, total)
        except (ArtefactError, MachineError):
            return None
        # What overflows in one row by its own factors is no number in the others, which have it times zero.
        if not np.isfinite(logits.max(axis=-1)).all():
            return None
        for cache, token in rows:
            cache.append(token)
        places = {id(memory): row for row, memory in enumerate(order)}
        return [np.array(logits[places[id(cache.memory)]]) for cache, _ in texts]

    def _run(self, rows: Sequence[tuple[Cache, int]], total: int) -> Floats:
        """The logits (rows, vocabulary), a view. Raises ArtefactError."""
        self._bind(rows)
        mask = np.zeros((len(rows), total), np.int64)
        for row, (cache, _) in enumerate(rows):
            mask[row, : cache.memory.length + 1] = 1
        ids = np.array([[token] for _, token in rows], np.int64)
        self._binding.bind_ortvalue_input(IDS, value_of(ids))
        self._binding.bind_ortvalue_input(MASK, value_of(mask))
        self._binding.bind_output(LOGITS)
        run(self._base.session, self._binding, self._options)
        logits: Floats = self._binding.get_outputs_as_ortvaluevector()[0].numpy()
        return logits[:, -1]

    def _bind(self, rows: Sequence[tuple[Cache, int]]) -> None:
        """The rows' adapters, which ranks are whose, and the memory."""
        adapters = list(dict.fromkeys(a for cache, _ in rows if (a := cache.adapter) and _acts(a)))
        numbers = [
            adapters.index(cache.adapter) if cache.adapter in adapters else None
            for cache, _ in rows
        ]
        same = len(adapters) == 1 and None not in numbers
        if self._fixed != (adapters, same):
            self._bind_adapters(adapters, same)
        for name, value in (self._beside.own_ranks(numbers) if self._beside else {}).items():
            self._binding.bind_ortvalue_input(name, value)
        values = self._rows.values(len(rows))
        if values is not self._values:
            names = self._base.manifest.cache_names()
            for (name, to), value in zip(names, values, strict=True):
                self._binding.bind_ortvalue_input(name, value)
                self._binding.bind_ortvalue_output(to, value)
            self._values = values

    def _bind_adapters(self, adapters: list[DecoderAdapter], same: bool) -> None:
        """Begin anew with these. ``same``: the one adapter is every row's."""
        self._binding, self._values = self._base.session.io_binding(), []
        self._binding.bind_output(LOGITS)  # the first of the outputs, wherever it is bound again
        self._beside, inputs = None, dict[str, Any]()
        manifest = self._base.manifest
        if same:
            inputs = {n: value for n, value in adapters[0].values.items() if n != SOFT_PROMPT}
        elif adapters:
            assert isinstance(manifest, DecoderManifest)
            self._beside = SideBySide(manifest, [low_rank(adapter) for adapter in adapters])
            inputs = self._beside.inputs
        for name, value in inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        self._fixed = adapters, same


def _acts(adapter: DecoderAdapter) -> bool:
    """Whether it does anything behind the first tokens of a text."""
    return any(name != SOFT_PROMPT for name in adapter.values)
