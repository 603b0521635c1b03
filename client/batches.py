"""Texts to token ids, and ids to batches of like length.

Encoded rows lie in one flat int32 array: a hundred thousand rows cost a few megabytes and no
Python objects. Batches are formed within windows of a few batches sorted by length, so that
little of a batch is padding while its composition stays random (bucketing).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from protocol.encoding import seed_from
from protocol.errors import DataError
from protocol.manifest import BOXES, TYPE_IDS
from protocol.panics import tokenizing
from protocol.rows.pages import Page, boxes_of, page_encodings
from protocol.rows.read import Text

Index = npt.NDArray[np.int64]
Targets = npt.NDArray[Any]

WINDOW = 16  # at least so many batches are sorted by length together
PAD_TOKENS = ("[PAD]", "<pad>")
_lock = threading.RLock()


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """Token ids of rows, one behind the other.

    ``ids`` (tokens,) int32; row i is ``ids[offsets[i]:offsets[i + 1]]``, with special tokens;
    ``types`` (tokens,) int8 says which of a pair's texts a token is of, None where that is not asked for;
    ``boxes`` (tokens, 4) int16 where it stands on a page, None of texts;
    ``offsets`` (rows + 1,) int64; ``targets`` (rows,): int64 labels, or float32 numbers; or of text that
    follows text (tokens,) int64: the token that follows each, -1 where that does not count; or of what a text
    becomes the tokens of that, row i being ``targets[target_offsets[i]:target_offsets[i + 1]]``.
    """

    ids: npt.NDArray[np.int32]
    types: npt.NDArray[np.int8] | None = None
    boxes: npt.NDArray[np.int16] | None = None
    offsets: Index
    targets: Targets
    pad_id: int
    by_token: bool = False  # whether targets are of tokens
    target_offsets: Index | None = None  # as offsets, where targets are of a text of their own

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Index:
        """Tokens per row, of both texts, (rows,) int64."""
        own = np.diff(self.offsets)
        return own if self.target_offsets is None else own + np.diff(self.target_offsets)

    @property
    def counted(self) -> Index:
        """What the loss of each row is a sum over, (rows,) int64: tokens that count, else the row itself."""
        if not self.by_token:
            return np.ones(len(self), np.int64)
        ends = np.concatenate(([0], np.cumsum(self.targets >= 0)))[self._of_targets]
        return np.diff(ends).astype(np.int64)

    @property
    def _of_targets(self) -> Index:
        return self.offsets if self.target_offsets is None else self.target_offsets

    @property
    def together(self) -> int:
        """All: texts are bounded by their tokens."""
        return len(self)

    @property
    def held(self) -> int:
        """Numbers of four bytes: its tokens, and two for the box of each."""
        return len(self.ids) * (1 if self.boxes is None else 3)

    @property
    def measured(self) -> Encoded:
        """Themselves."""
        return self

    def drawn(self, seed: int) -> Encoded:
        """Nothing is drawn of texts."""
        return self

    @property
    def is_current(self) -> bool:
        """All of a text lies in the file of the rows."""
        return True

    def batch(self, index: Index) -> Batch:
        """The rows at ``index`` for an engine."""
        return collate(self, index)

    def take(self, index: Index) -> Encoded:
        """The rows at ``index``, in that order."""
        tokens, wanted = (_places(offsets, index) for offsets in (self.offsets, self._of_targets))
        apart = self.target_offsets
        return Encoded(
            ids=self.ids[tokens],
            types=None if self.types is None else self.types[tokens],
            boxes=None if self.boxes is None else self.boxes[tokens],
            offsets=_taken(self.offsets, index),
            targets=self.targets[wanted if self.by_token else index],
            pad_id=self.pad_id,
            by_token=self.by_token,
            target_offsets=None if apart is None else _taken(apart, index),
        )


def _places(offsets: Index, index: Index) -> Index:
    """Where the numbers of the rows at ``index`` lie."""
    parts = [np.arange(offsets[i], offsets[i + 1]) for i in index]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _taken(offsets: Index, index: Index) -> Index:
    """The offsets of those rows alone."""
    return np.concatenate(([0], np.cumsum(np.diff(offsets)[index]))).astype(np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """``ids``, ``mask``, ``types`` (rows, longest) int64, ``boxes`` (rows, longest, 4); ``targets`` as in
    :class:`Encoded`, (rows,) or, of tokens, (rows, longest)."""

    ids: npt.NDArray[np.int64]
    types: npt.NDArray[np.int64] | None = None
    boxes: npt.NDArray[np.int64] | None = None
    mask: npt.NDArray[np.int64]
    targets: Targets

    @property
    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        """By the names of the answering graph's inputs."""
        further = {TYPE_IDS: self.types, BOXES: self.boxes}
        return {"input_ids": self.ids, "attention_mask": self.mask} | {
            name: values for name, values in further.items() if values is not None
        }


def encode(
    tokenizer: Any,
    texts: Sequence[Text | Page],
    targets: ArrayLike,
    max_length: int,
    *,
    typed: bool = False,
    boxed: bool = False,
    place: Callable[[int], str] = lambda row: f"text {row + 1}",
) -> Encoded:
    """Tokenise with special tokens, cut to ``max_length`` tokens, of a pair the longer text first.

    ``tokenizer`` is a ``tokenizers.Tokenizer``; its own truncation and padding are put back as
    they were. ``typed``: keep which of a pair's texts a token is of. ``boxed``: they are pages, of which it
    is kept where each token stands. ``place``: where a text stands, for messages. Raises DataError for a text
    that gives no token at all, ArtefactError for a tokenizer that fails.
    """
    fails = tokenizing("the base's tokenizer fails", "fetch the base again", private=True)
    with settings_of(tokenizer, max_length) as pad_id, fails:
        if boxed:
            encodings = page_encodings(tokenizer, cast(Sequence[Page], texts))
        else:
            encodings = tokenizer.encode_batch_fast(list(texts))
    rows = [encoding.ids for encoding in encodings]
    _verify_tokens(rows, place)
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    ids = np.fromiter((token for row in rows for token in row), np.int32, int(offsets[-1]))
    types = None
    if typed:
        flat = (kind for encoding in encodings for kind in encoding.type_ids)
        types = np.fromiter(flat, np.int8, int(offsets[-1]))
    return Encoded(
        ids=ids,
        types=types,
        boxes=_boxes(encodings, cast(Sequence[Page], texts)) if boxed else None,
        offsets=offsets,
        targets=np.asarray(targets),
        pad_id=pad_id,
    )


def _verify_tokens(rows: Sequence[Sequence[int]], place: Callable[[int], str]) -> None:
    for number, row in enumerate(rows):
        if not row:
            raise DataError(
                f"{place(number)}: its text has no tokens",
                "remove the row or mend its text",
                public="a text has no tokens",
            )


def _boxes(encodings: Sequence[Any], pages: Sequence[Page]) -> npt.NDArray[np.int16]:
    """Where each token of pages stands, (tokens, 4)."""
    placed = zip(encodings, pages, strict=True)
    boxes = [box for encoding, page in placed for box in boxes_of(encoding, page)]
    return np.array(boxes, np.int16).reshape(-1, 4)


@contextmanager
def settings_of(tokenizer: Any, max_length: int | None) -> Iterator[int]:
    """Truncation at ``max_length``, if any, and no padding for the time being; yields the id of padding.

    Of threads one at a time: the settings are the tokenizer's, whoever encodes with it.
    """
    with _lock:
        yield from _settings_of(tokenizer, max_length)


def _settings_of(tokenizer: Any, max_length: int | None) -> Iterator[int]:
    padding, truncation = tokenizer.padding, tokenizer.truncation
    if padding:
        pad_id = int(padding["pad_id"])
    else:
        found = (tokenizer.token_to_id(token) for token in PAD_TOKENS)
        pad_id = next((token for token in found if token is not None), 0)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if max_length is not None:
        tokenizer.enable_truncation(max_length)
    try:
        yield pad_id
    finally:
        if truncation:
            tokenizer.enable_truncation(**truncation)
        else:
            tokenizer.no_truncation()
        if padding:
            tokenizer.enable_padding(**padding)


def epoch_batches(lengths: Index, *, batch_size: int, seed: int, epoch: int) -> list[Index]:
    """One pass: every row once, in random batches of rows of like length, in random order.

    The same ``seed`` and ``epoch`` give the same batches. All batches but one are full.
    """
    rng = np.random.default_rng(seed_from("batches", seed, epoch))
    order = rng.permutation(len(lengths)).astype(np.int64)
    # Equal windows of whole batches: a short last one would be padded like no window at all.
    windows = max(1, len(order) // (WINDOW * batch_size))
    window = math.ceil(len(order) / (windows * batch_size)) * batch_size
    batches: list[Index] = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def training_batches(
    lengths: Index, *, batch_size: int, seed: int, epochs: float
) -> Iterator[tuple[int, Index]]:
    """(epoch, rows) of every step; of a fractional last epoch the first batches, rounded up."""
    for epoch in range(math.ceil(epochs)):
        batches = epoch_batches(lengths, batch_size=batch_size, seed=seed, epoch=epoch)
        share = min(1.0, epochs - epoch)
        for rows in batches[: math.ceil(share * len(batches))]:
            yield epoch, rows


def held_out(rows: int, out: int, *, seed: int) -> tuple[Index, Index]:
    """Of so many rows which to train on, and which ``out`` to measure on; each in order, by ``seed``."""
    order = np.random.default_rng(seed).permutation(rows).astype(np.int64)
    return np.sort(order[out:]), np.sort(order[:out])


def by_length(lengths: Index, *, batch_size: int) -> list[Index]:
    """Every row once, sorted by length: for prediction, where order does not matter."""
    order = np.argsort(lengths, kind="stable").astype(np.int64)
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def micro_batches(lengths: Index, index: Index, *, most: int, rows: int) -> list[Index]:
    """The rows of a step in pieces of at most ``rows``, and ``most`` padded tokens, at least one row in each.

    ``lengths`` are those of ``index``. A program's loss is a sum, so the gradients of pieces add up to the
    step's: what bounds the memory of a step changes nothing but roundings.
    """
    pieces: list[Index] = []
    start = longest = 0
    for at, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if at > start and (at - start >= rows or longest * (at - start + 1) > most):
            pieces.append(index[start:at])
            start, longest = at, length
    return [*pieces, index[start:]]


def collate(rows: Encoded, index: Index) -> Batch:
    """The rows at ``index``, padded to the longest of them."""
    lengths = rows.offsets[index + 1] - rows.offsets[index]
    ids = np.full((len(index), int(lengths.max())), rows.pad_id, np.int64)
    types = None if rows.types is None else np.zeros_like(ids)
    boxes = None if rows.boxes is None else np.zeros((*ids.shape, 4), np.int64)
    for at, row in enumerate(index):
        start, stop = rows.offsets[row], rows.offsets[row + 1]
        ids[at, : stop - start] = rows.ids[start:stop]
        if types is not None and rows.types is not None:
            types[at, : stop - start] = rows.types[start:stop]
        if boxes is not None and rows.boxes is not None:
            boxes[at, : stop - start] = rows.boxes[start:stop]
    mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
    if not rows.by_token:
        return Batch(ids=ids, types=types, boxes=boxes, mask=mask, targets=rows.targets[index])
    ends = rows.offsets if rows.target_offsets is None else rows.target_offsets
    targets = np.full((len(index), int(np.diff(ends)[index].max())), -1, np.int64)
    for at, row in enumerate(index):
        start, stop = ends[row], ends[row + 1]
        targets[at, : stop - start] = rows.targets[start:stop]
    return Batch(ids=ids, types=types, mask=mask, targets=targets)
