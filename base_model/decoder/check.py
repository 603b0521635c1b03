"""Open a new graph once, and compare what it says with what its numbers mean, before it is called a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from base_model.decoder.plain import plain_run
from base_model.decoder.products import Stores
from base_model.decoder.shape import DecoderShape
from base_model.decoder.source import Floats
from base_model.source_files import first_line
from protocol.decoder_manifest import IDS, LOGITS, MASK
from protocol.errors import ArtefactError

TOKENS = 8
# Rounding makes some 1e-5, inputs of all linears in two parts 1e-3, in 8 bits 1e-2.
BOUND, PARTS, ROUNDED = 1e-3, 1e-2, 0.2
VERSIONS = "install the versions in constraints.txt, and build again"


def open_graph(path: Path, *, threads: int = 1) -> ort.InferenceSession:
    """A session on the CPU. Raises ArtefactError for a graph that ONNX Runtime does not take."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT raises types of its own, without a common public base
        raise ArtefactError(
            f"the new graph cannot be opened: {first_line(error)}", VERSIONS
        ) from None


def check_graph(path: Path, shape: DecoderShape, weights: Stores, *, bound: float = BOUND) -> None:
    """The graph gives the logits and the cache of its weights, in two pieces. Raises ArtefactError.

    ``bound``: of the norm of a difference over the norm of what it should be.
    """
    tokens = min(TOKENS, shape.context)
    ids = np.random.default_rng(0).integers(0, shape.vocabulary, tokens)
    session = open_graph(path)
    try:
        logits, cache = _in_two_pieces(session, shape, ids)
    except Exception as error:  # ORT's own
        raise ArtefactError(f"the new graph does not run: {first_line(error)}", VERSIONS) from None
    plain = plain_run(shape, weights, ids)
    for (name, value), expected in zip(cache.items(), plain.cache, strict=True):
        verify_near(name, expected, value[0], bound)
    verify_near(LOGITS, plain.logits[-len(logits) :], logits, bound)


def verify_near(name: str, expected: Any, value: Floats, bound: float) -> None:
    """Raises ArtefactError that names what is further apart than rounding explains."""
    apart = float(np.linalg.norm(value - expected) / max(float(np.linalg.norm(expected)), 1e-9))
    if not apart <= bound:  # NaN is not near either
        raise ArtefactError(
            f"the new graph differs from its weights: {name} by {apart:.1e}", VERSIONS
        )


def _in_two_pieces(
    session: ort.InferenceSession, shape: DecoderShape, ids: npt.NDArray[np.int64]
) -> tuple[Floats, dict[str, Floats]]:
    """Logits of the last two tokens, those of the last with the others in the cache, and the cache after."""
    empty = np.zeros((1, shape.kv_heads, 0, shape.head_size), np.float32)
    names = [value.name for value in session.get_inputs() if value.name.startswith("past_")]
    cache, parts = dict.fromkeys(names, empty), []
    for start, end in ((0, len(ids) - 1), (len(ids) - 1, len(ids))):
        if start == end:
            continue  # a context of one token
        inputs = {IDS: ids[None, start:end], MASK: np.ones((1, end), np.int64), **cache}
        logits, *present = session.run(None, inputs)
        parts.append(logits[0, -1:])
        cache = dict(zip(names, present, strict=True))
    return np.concatenate(parts), cache
