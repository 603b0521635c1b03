"""Runs of a decoder's session with the memory of what it has read: keys and values of every layer.

ONNX Runtime's grouped attention writes new keys and values behind the old ones where the old tensors have
room, if both names are bound to one memory: then nothing is copied for a token. A graph of other operators
makes longer tensors at each run; which of both it is, is tried when a base is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from protocol.decoder_manifest import IDS, LOGITS, MASK, WritingManifest
from protocol.errors import ArtefactError, MachineError

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
BLOCK = 64  # positions at first; room doubles
AGREE = 1e-3  # of the largest logit: both ways of keeping a cache do the same sums
# The same of rows of one run: other sums, after which what linears read may be rounded to 8 bits otherwise.
ROWS_AGREE = 5e-2
UNEQUAL = 5  # positions and tokens that are enough to see
ERRORS, SILENT = 3, 4  # of ONNX Runtime's levels


class KeyValues:
    """What one session keeps of one text.

    ``prefix``: what is held at first, OrtValues (1, kv_heads, tokens, head_size) in the cache's order.
    ``fixed``: values of further inputs, for good: an adapter, and what was read before. An adapter is bound
    as any input, because ONNX Runtime 1.31 leaves out the active adapters of run options, without an error,
    when inputs are bound.
    """

    def __init__(
        self,
        session: Any,
        manifest: WritingManifest,
        fixed: Mapping[str, Any],
        *,
        in_place: bool,
        log_level: int = ERRORS,
        prefix: Sequence[Any] = (),
    ) -> None:
        self._session, self._manifest, self._in_place = session, manifest, in_place
        self._names = manifest.cache_names()
        self._binding = session.io_binding()
        self._options = ort.RunOptions()
        self._options.log_severity_level = log_level
        for name, value in fixed.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_output(LOGITS)  # the first of the outputs, wherever it is bound again
        # positions that are held: the prefix's, and of what was read
        self.length = prefix[0].shape()[2] if prefix else 0
        self.values: list[Any] = []
        # A prefix is full, so what is read goes elsewhere: nothing is written into it.
        self.move(list(prefix) or [value_of(self._empty(0)) for _ in self._names])

    def read(self, ids: Ids) -> Floats:
        """Read ``ids`` (new,) behind what was read; the logits (vocabulary,) that follow the last of them.

        Raises ArtefactError when ONNX Runtime does, MachineError for a lack of memory; then nothing was read.
        """
        total = self.length + len(ids)
        if self._in_place:
            self._reserve(total)
        self._binding.bind_ortvalue_input(IDS, value_of(np.ascontiguousarray(ids[None])))
        self._binding.bind_ortvalue_input(MASK, value_of(np.ones((1, total), np.int64)))
        self._binding.bind_output(LOGITS)
        if not self._in_place:
            for _, to in self._names:
                self._binding.bind_output(to)
        run(self._session, self._binding, self._options)
        if not self._in_place:
            self.move(self._binding.get_outputs()[1:])
        self.length = total
        logits = self._binding.get_outputs_as_ortvaluevector()[0].numpy()  # a view
        return np.array(logits[0, -1])

    def keep(self, length: int) -> None:
        """Forget all but the first ``length`` positions, of which there are as many."""
        if not self._in_place and length < self.length:
            self.move([value_of(value.numpy()[:, :, :length].copy()) for value in self.values])
        self.length = length

    def move(self, values: list[Any]) -> None:
        """Keep what is held in ``values``, OrtValues that hold it already, with room for more."""
        for (name, to), value in zip(self._names, values, strict=True):
            self._binding.bind_ortvalue_input(name, value)
            if self._in_place:
                self._binding.bind_ortvalue_output(to, value)
        self.values = values

    def _reserve(self, total: int) -> None:
        """Room for ``total`` positions."""
        room = self.values[0].shape()[2]
        if total <= room:
            return
        room = grown(room, total, self._manifest)
        arrays = [self._empty(room) for _ in self._names]
        for array, value in zip(arrays, self.values, strict=True):
            array[:, :, : self.length] = value.numpy()[:, :, : self.length]
        self.move([value_of(array) for array in arrays])

    def _empty(self, room: int) -> Floats:
        return empty(self._manifest, 1, room)


def grown(room: int, total: int, manifest: WritingManifest) -> int:
    """The positions of a cache that had ``room`` and is to have ``total`` or more."""
    return max(total, min(max(2 * room, BLOCK), manifest.max_positions))


def empty(manifest: WritingManifest, rows: int, room: int) -> Floats:
    """A tensor of a cache, zeros. Raises MachineError where there is no memory for as many positions."""
    try:
        return np.zeros((rows, manifest.kv_heads, room, manifest.head_size), np.float32)
    except (MemoryError, ValueError):  # the latter beyond what an address can say
        raise MachineError(
            f"there is no memory for a cache of {room} positions", "shorten the text"
        ) from None


def run(session: Any, binding: Any, options: Any) -> None:
    """Run a graph as it is bound. Raises ArtefactError when ONNX Runtime does."""
    try:
        session.run_with_iobinding(binding, options)
    except Exception as error:  # ORT raises types of its own, without a common public base
        raise ArtefactError(
            f"the base's graph does not run: {str(error).splitlines()[0][:200]}",
            "fetch the base and its adapter again, or give the device more memory",
        ) from None


def value_of(array: npt.NDArray[Any]) -> Any:
    """An OrtValue on the array's memory, which it keeps."""
    return ort.OrtValue.ortvalue_from_numpy(array)


def writes_in_place(
    session: Any, manifest: WritingManifest, fixed: Mapping[str, Any] | None = None
) -> bool:
    """Whether a run whose old and new cache are one memory gives what a plain run gives.

    Raises ArtefactError when even that does not run.
    """
    pieces = [np.zeros(1, np.int64), np.ones(min(2, manifest.max_positions - 1), np.int64)]
    pieces = [piece for piece in pieces if len(piece)]
    plain, shared = (
        KeyValues(session, manifest, fixed or {}, in_place=in_place, log_level=SILENT)
        for in_place in (False, True)
    )
    expected = [plain.read(piece) for piece in pieces]
    try:
        same = [shared.read(piece) for piece in pieces]
    except ArtefactError:
        return False
    return all(
        np.abs(want - got).max() <= AGREE * max(1.0, float(np.abs(want).max()))
        for want, got in zip(expected, same, strict=True)
    )


def rows_agree(session: Any, manifest: WritingManifest) -> bool:
    """Whether two texts of unequal length, as rows of one run in place, get the logits of each alone."""
    if manifest.max_positions < UNEQUAL or manifest.vocab_size < UNEQUAL:
        return False
    texts = [KeyValues(session, manifest, {}, in_place=True, log_level=SILENT) for _ in range(2)]
    joined = [empty(manifest, 2, UNEQUAL) for _ in manifest.cache_names()]
    try:
        for row, (text, ids) in enumerate(zip(texts, ([0], [1, 2]), strict=True)):
            text.read(np.array(ids, np.int64))
            for array, value in zip(joined, text.values, strict=True):
                array[row, :, : text.length] = value.numpy()[0, :, : text.length]
        expected = [text.read(np.array([3 + row], np.int64)) for row, text in enumerate(texts)]
        binding = session.io_binding()
        binding.bind_ortvalue_input(IDS, value_of(np.array([[3], [4]], np.int64)))
        binding.bind_ortvalue_input(MASK, value_of(np.array([[1, 1, 0], [1, 1, 1]], np.int64)))
        binding.bind_output(LOGITS)
        for (name, to), array in zip(manifest.cache_names(), joined, strict=True):
            value = value_of(array)
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(to, value)
        options = ort.RunOptions()
        options.log_severity_level = SILENT
        run(session, binding, options)
    except ArtefactError:
        return False
    logits = binding.get_outputs_as_ortvaluevector()[0].numpy()[:, -1]
    return all(
        np.abs(want - row).max() <= ROWS_AGREE * max(1.0, float(np.abs(want).max()))
        for want, row in zip(expected, logits, strict=True)
    )
