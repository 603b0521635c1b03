"""Caches as rows of one memory, and their adapters side by side: what a run of several texts reads.

A row is the memory of its text also where the text reads alone. It is copied only where it joins, where it
takes a row that became free, and where all rows need more room.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge_runtime.decoder.adapters import DecoderAdapter
from edge_runtime.decoder.key_values import Floats, KeyValues, empty, grown, value_of
from protocol.decoder_manifest import DecoderManifest, WritingManifest
from protocol.forms import DOWN, UP
from protocol.joined import products, ranks_slot

Factors = Mapping[str, Any]  # OrtValues by the graph's inputs


class Rows:
    """Memory of caches: tensors (rows, kv_heads, room, head_size) in the manifest's order."""

    def __init__(self, manifest: WritingManifest, *, most: int) -> None:
        """``most``: rows at most; those that nobody has are never written, so that they take no memory."""
        self._manifest, self._most = manifest, most
        self._arrays: list[Floats] = []
        # Who has a row, and the values that it was given: it may have gone elsewhere since.
        self._owners: list[tuple[weakref.ref[KeyValues], list[Any]]] = []
        self._shown: tuple[int, list[Any]] | None = None

    def hold(self, texts: Sequence[KeyValues], total: int) -> list[KeyValues]:
        """``texts`` in the order of their rows, which are the first ones.

        ``total``: positions that each has room for. Raises MachineError for a lack of memory.
        """
        stay = self._those_of(texts)
        if not self._arrays or total > self._arrays[0].shape[2]:
            self._renew(total)
            stay = {}
        count = len(stay)
        free = [row for row in range(count) if row not in stay]
        for row, to in zip(sorted(row for row in stay if row >= count), free, strict=True):
            stay[to] = stay.pop(row)
            self._place(stay[to], to)
        del self._owners[count:]
        held = {id(text) for text in stay.values()}
        for text in texts:
            if id(text) not in held:
                stay[len(self._owners)] = text
                self._place(text, len(self._owners))
        return [stay[row] for row in range(len(texts))]

    def values(self, rows: int) -> list[Any]:
        """OrtValues of the first ``rows``; the same list while these are where they were."""
        if self._shown is None or self._shown[0] != rows:
            self._shown = rows, [value_of(array[:rows]) for array in self._arrays]
        return self._shown[1]

    def _those_of(self, texts: Sequence[KeyValues]) -> dict[int, KeyValues]:
        """The texts that have rows; who else has one is given a memory of its own."""
        wanted, stay = {id(text) for text in texts}, {}
        for row, (owner, values) in enumerate(self._owners):
            text = owner()
            if text is None or text.values is not values:
                continue
            if id(text) in wanted:
                stay[row] = text
            else:
                held = (value.numpy()[:, :, : text.length].copy() for value in values)
                text.move([value_of(array) for array in held])
        return stay

    def _renew(self, total: int) -> None:
        """Memory for more positions; rows keep the old one until they are placed."""
        room = self._arrays[0].shape[2] if self._arrays else 0
        room = grown(room, total, self._manifest)
        names = self._manifest.cache_names()
        self._arrays = [empty(self._manifest, self._most, room) for _ in names]
        self._owners, self._shown = [], None

    def _place(self, text: KeyValues, row: int) -> None:
        values = []
        for array, value in zip(self._arrays, text.values, strict=True):
            own = array[row : row + 1]
            own[:, :, : text.length] = value.numpy()[:, :, : text.length]
            values.append(value_of(own))
        text.move(values)
        self._owners[row : row + 1] = [(weakref.ref(text), values)]


def low_rank(adapter: DecoderAdapter) -> Factors:
    """The factors of an adapter."""
    return {n: value for n, value in adapter.values.items() if n.endswith((DOWN, UP))}


class SideBySide:
    """Several adapters as one: their ranks lie one behind the other in every product. (``protocol.joined``)

    In a product of N linears each adapter has N times as many ranks as the most that it has for a linear
    anywhere, so that one input says for all products of N which ranks are whose; zeros fill what it has not.
    """

    def __init__(self, manifest: DecoderManifest, adapters: Sequence[Factors]) -> None:
        """``adapters``: different ones, with factors."""
        members = products(manifest.linears, manifest.joined)
        linears = {path: len(parts) for path, parts in members.items()}
        self._counts = sorted(set(linears.values()))
        self._ranks = [_rank(adapter, linears) for adapter in adapters]
        self.inputs: dict[str, Any] = {}  # OrtValues
        for path, count in linears.items():
            widths = [count * rank for rank in self._ranks]
            for end, axis in ((DOWN, 1), (UP, 0)):
                parts = [adapter.get(path + end) for adapter in adapters]
                if any(part is not None for part in parts):
                    self.inputs[path + end] = value_of(_stacked(parts, widths, axis))

    def own_ranks(self, rows: Sequence[int | None]) -> dict[str, Any]:
        """The inputs (rows, ranks) that say so where row i is under the adapter of number ``rows[i]``."""
        own = np.array([[number == row for number in range(len(self._ranks))] for row in rows])
        return {
            ranks_slot(count).name: value_of(
                np.repeat(own, [count * rank for rank in self._ranks], axis=1).astype(np.float32)
            )
            for count in self._counts
        }


def _rank(adapter: Factors, linears: Mapping[str, int]) -> int:
    """The most ranks that it has for a linear of a product."""
    return max(
        -(-int(adapter[path + DOWN].shape()[1]) // count)
        for path, count in linears.items()
        if path + DOWN in adapter
    )


def _stacked(parts: Sequence[Any], widths: Sequence[int], axis: int) -> Floats:
    """OrtValues one behind the other along an axis, on which each has its width."""
    shape = next(list(part.shape()) for part in parts if part is not None)
    shape[axis] = sum(widths)
    whole, start = np.zeros(shape, np.float32), 0
    for part, width in zip(parts, widths, strict=True):
        if part is not None:
            size = part.shape()[axis]
            place = [slice(None), slice(None)]
            place[axis] = slice(start, start + size)
            whole[tuple(place)] = part.numpy()
        start += width
    return whole
