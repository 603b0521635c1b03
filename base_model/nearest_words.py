"""Tokens of a base whose word embeddings point where rows of a soft prompt do.

A row is compared with the table of words by cosine: how long a row is says little, and families that scale
what they read scale all rows alike. The table is read in pieces, of a decoder out of its codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from base_model.decoder.opened import mapped_decoder
from base_model.decoder.stored import floats_of, rows_of
from base_model.families import FAMILIES
from base_model.verify import open_tokenizer
from base_model.weights_file import DTYPES, WEIGHTS, places_of
from edge_runtime.base import read_any_manifest
from protocol.decoder_manifest import DecoderManifest
from protocol.errors import ArtefactError
from protocol.media_manifest import MediaManifest
from protocol.seq2seq_manifest import Seq2SeqManifest

PIECE = 2**20  # numbers of the table that are looked at together
Floats = npt.NDArray[np.float32]
Similarities = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Near:
    """A token as the vocabulary spells it, and the ``similarity``, -1 to 1, of its embedding to a row."""

    token: str
    id: int
    similarity: float


def nearest_words(base: Path, prompt: Floats, *, count: int) -> list[list[Near]]:
    """For each row of ``prompt`` (rows, width) so many tokens, the nearest first; of equals the lower id.

    Rows of zeros point nowhere: such a row of the prompt has none, and such a token is near to none.
    Raises ArtefactError for a base that has no words to compare with.
    """
    tokenizer = open_tokenizer(base)
    wanted, lengths = _directions(prompt)
    best: Similarities = np.zeros((len(prompt), 0))
    ids: npt.NDArray[np.int64] = np.zeros((len(prompt), 0), np.int64)
    for start, rows in _pieces(base):
        known = _known(tokenizer, start, rows)
        near = wanted @ _directions(rows[known])[0].T
        ids = np.concatenate([ids, np.broadcast_to(start + known, near.shape)], axis=1)
        best = np.concatenate([best, near], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :count]
        best = np.take_along_axis(best, order, axis=1)
        ids = np.take_along_axis(ids, order, axis=1)
    return [
        [
            Near(token=str(tokenizer.id_to_token(int(i))), id=int(i), similarity=float(s))
            for i, s in zip(ids[row], best[row], strict=True)
        ]
        if lengths[row] > 0
        else []
        for row in range(len(prompt))
    ]


def _known(tokenizer: Tokenizer, start: int, rows: Floats) -> npt.NDArray[np.int64]:
    """Those of ``rows``, from id ``start`` on, that are a token's and point somewhere."""
    return np.array(
        [
            at
            for at in np.flatnonzero(np.any(rows != 0, axis=1)).tolist()
            if tokenizer.id_to_token(start + at) is not None
        ],
        np.int64,
    )


def _directions(rows: Floats) -> tuple[Similarities, Similarities]:
    """float64: rows of length 1, zeros where a row is, and the lengths that they had."""
    exact = rows.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1)
    return exact / np.where(lengths > 0, lengths, 1.0)[:, None], lengths


def _pieces(base: Path) -> Iterator[tuple[int, Floats]]:
    """The table of words: (id of the first row, rows)."""
    manifest = read_any_manifest(base)
    if isinstance(manifest, Seq2SeqManifest | MediaManifest):
        raise ArtefactError(f"{base}: its graph takes no soft prompt", "name another base")
    step = max(1, PIECE // manifest.embedding_size)
    if isinstance(manifest, DecoderManifest):
        shape, stored = mapped_decoder(base)
        table = stored[f"{shape.embeddings}.weight"]
        for start in range(0, shape.vocabulary, step):
            yield start, floats_of(rows_of(table, slice(start, start + step)), shape.hidden)
        return
    family = FAMILIES[manifest.family]
    place = places_of(base / WEIGHTS)[f"{family.prefix}.embeddings.word_embeddings.weight"]
    words = np.memmap(
        base / WEIGHTS, DTYPES[place.kind], "r", offset=place.offset, shape=place.shape
    )
    for start in range(0, len(words), step):
        yield start, np.asarray(words[start : start + step], np.float32)
