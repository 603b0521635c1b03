"""What the inputs of a decoder's linears are on some text: how much each of their numbers matters.

Codes of 4 bits round; which way hurts least depends on what a weight multiplies. So the publisher runs the
decoder once, in 8 bits, over some hundred tokens and keeps the mean square of every input. (docs/adr/0052)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from base_model.decoder.check import open_graph
from base_model.decoder.products import Products, Stores
from base_model.decoder.sequence import sequence_graph
from base_model.decoder.shape import DecoderShape
from base_model.decoder.source import CodedWeight, DecoderSource, Floats
from base_model.decoder.stored import Progress, StoredShape, stored_weights
from base_model.decoder.texts import opened_tokenizer
from base_model.graph_data import ONE_FILE
from protocol.decoder_manifest import IDS, MASK
from protocol.errors import ArtefactError
from protocol.manifest import Linear

PIECE = 128  # tokens that are read at once
LEAST_TOKENS, MOST_TOKENS = 64, 8192


def default_text() -> str:
    """A page of prose, dialogue, instructions, figures and code that comes with fedge."""
    return files("base_model.decoder").joinpath("calibration.txt").read_text("utf-8")


def input_moments(
    source: DecoderSource, shape: DecoderShape, text: str, *, tell: Progress
) -> dict[str, Floats]:
    """Mean squares (in,) of the inputs of every linear, by its path.

    Raises ArtefactError for a text of fewer than 64 tokens; of a long one the first 8,192 are read.
    """
    pieces = calibration_pieces(source, shape.vocabulary, text, most=shape.context)
    building = sequence_graph(shape, coarse_weights(source, shape), slots=False)
    feeds = [{IDS: piece, MASK: np.ones_like(piece)} for piece in pieces]
    linears = [linear.path for linear in shape.linears()]
    return watched_moments(building, linears, feeds, tell=tell)


def calibration_pieces(
    source: DecoderSource, vocabulary: int, text: str, *, most: int
) -> list[npt.NDArray[np.int64]]:
    """The text's tokens in pieces (1, tokens) of at most ``most``. Raises ArtefactError."""
    tokenizer = opened_tokenizer(source.tokenizer, vocabulary=vocabulary, source=source.name)
    ids = np.array(tokenizer.encode(text).ids[:MOST_TOKENS], np.int64)
    if len(ids) < LEAST_TOKENS:
        raise ArtefactError(
            f"the calibration text has {len(ids)} tokens", f"give it {LEAST_TOKENS} or more"
        )
    size = min(PIECE, most)
    return [ids[None, start : start + size] for start in range(0, len(ids), size)]


def coarse_weights(source: DecoderSource, shape: StoredShape) -> Stores:
    """The source's tensors in 8 bits, which are near enough to see what matters."""
    return stored_weights(
        shape, source.tensors, bits=8, embedding_bits=8, tell=lambda _step, _share: None
    ).tensors


def watched_moments(
    building: Products,
    linears: Iterable[str],
    feeds: Sequence[Mapping[str, npt.NDArray[np.int64]]],
    *,
    tell: Progress,
) -> dict[str, Floats]:
    """Mean squares (in,) of what each of ``linears`` reads, over the tokens of all ``feeds``."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "graph.onnx"
        watched = _write_watched(path, building, set(linears))
        session = open_graph(path)
        names = {value.name for value in session.get_inputs()}
        sums: dict[str, Floats] = {}
        for number, feed in enumerate(feeds):
            answers = session.run(list(watched), {n: v for n, v in feed.items() if n in names})
            for output, squares in zip(watched, answers, strict=True):
                sums[output] = sums.get(output, np.float32(0)) + squares
            tell("calibrating", (number + 1) / len(feeds))
    tokens = sum(feed[IDS].size for feed in feeds)
    means = {output: (total / tokens).astype(np.float32) for output, total in sums.items()}
    return {path: means[output] for output, paths in watched.items() for path in paths}


def has_floats(source: DecoderSource, linears: Iterable[Linear]) -> bool:
    """Whether some linear has to be quantised, and does not come in codes of 4 bits."""
    weights = (source.tensors[f"{linear.path}.weight"] for linear in linears)
    return any(not isinstance(weight, CodedWeight) or weight.bits != 4 for weight in weights)


def _write_watched(path: Path, building: Products, linears: set[str]) -> dict[str, list[str]]:
    """A graph whose outputs are sums of squares over tokens; the paths of the linears that each is for."""
    nodes = building.nodes
    readers: dict[str, list[str]] = {}
    for linear, rows in building.read.items():
        if linear in linears:
            readers.setdefault(rows, []).append(linear)
    watched = {}
    for rows, paths in readers.items():
        squares = nodes.add("Mul", [rows, rows], f"{rows}/squares")
        output = nodes.add(
            "ReduceSum", [squares, nodes.numbers("axis/0", [0])], f"{rows}/moment", keepdims=0
        )
        nodes.output(output, TensorProto.FLOAT, [f"{rows}/width"])
        watched[output] = paths
    nodes.save(path, most=ONE_FILE)
    return watched
