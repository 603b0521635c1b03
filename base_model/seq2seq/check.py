"""Open both new graphs once, and compare what they say with what their numbers mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from base_model.decoder.check import BOUND, TOKENS, VERSIONS, open_graph, verify_near
from base_model.decoder.products import Stores
from base_model.decoder.source import Floats
from base_model.seq2seq.plain import plain_run
from base_model.seq2seq.shape import Seq2SeqShape
from base_model.source_files import first_line
from protocol.decoder_manifest import IDS, LOGITS, MASK
from protocol.errors import ArtefactError
from protocol.seq2seq_manifest import SOURCE_MASK, STATES

Ids = npt.NDArray[np.int64]


def check_graphs(
    encoder: Path, decoder: Path, shape: Seq2SeqShape, weights: Stores, *, bound: float = BOUND
) -> None:
    """They give the states, logits and caches of their weights; what is written comes in two pieces.

    Raises ArtefactError.
    """
    tokens = min(TOKENS, shape.context)
    source, written = np.random.default_rng(0).integers(0, shape.vocabulary, (2, tokens))
    reading, writing = open_graph(encoder), open_graph(decoder)
    try:
        states, cross = _read(reading, source)
        logits, cache = _written(writing, shape, written, cross)
    except Exception as error:  # ORT's own
        raise ArtefactError(f"a new graph does not run: {first_line(error)}", VERSIONS) from None
    plain = plain_run(shape, weights, source, written)
    verify_near(STATES, plain.states, states, bound)
    for values, expected in ((cross, plain.cross), (cache, plain.cache)):
        for (name, value), want in zip(values.items(), expected, strict=True):
            verify_near(name, want, value[0], bound)
    verify_near(LOGITS, plain.logits[-len(logits) :], logits, bound)


def _read(session: ort.InferenceSession, source: Ids) -> tuple[Floats, dict[str, Floats]]:
    """States (source, hidden), and what the decoder takes of them."""
    names = [value.name for value in session.get_outputs()]
    states, *cross = session.run(names, {IDS: source[None], MASK: np.ones_like(source[None])})
    return states[0], dict(zip(names[1:], cross, strict=True))


def _written(
    session: ort.InferenceSession, shape: Seq2SeqShape, written: Ids, cross: dict[str, Floats]
) -> tuple[Floats, dict[str, Floats]]:
    """Logits of the last two tokens, those of the last with the others in the cache, and the cache after."""
    source = next(iter(cross.values())).shape[2]
    fixed = {**cross, SOURCE_MASK: np.ones((1, source), np.int64)}
    empty = np.zeros((1, shape.heads, 0, shape.head_size), np.float32)
    names = [value.name for value in session.get_inputs() if value.name.startswith("past_")]
    cache, parts = dict.fromkeys(names, empty), []
    for start, end in ((0, len(written) - 1), (len(written) - 1, len(written))):
        if start == end:
            continue  # a context of one token
        inputs = {IDS: written[None, start:end], MASK: np.ones((1, end), np.int64)}
        logits, *present = session.run(None, inputs | fixed | cache)
        parts.append(logits[0])
        cache = dict(zip(names, present, strict=True))
    return np.concatenate(parts), cache
