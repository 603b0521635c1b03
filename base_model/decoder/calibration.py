"""What the inputs of a decoder's linears are on some text: how much each of their numbers matters.

Codes of 4 bits round; which way hurts least depends on what a weight multiplies. So the publisher runs the
decoder once, in 8 bits, over some hundred tokens and keeps the mean square of every input. (docs/adr/0052)
"""

from __future__ import annotations

import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np
from onnx import TensorProto

from base_model.decoder.check import open_graph
from base_model.decoder.products import Stores
from base_model.decoder.sequence import sequence_graph
from base_model.decoder.shape import DecoderShape
from base_model.decoder.source import CodedWeight, DecoderSource, Floats
from base_model.decoder.stored import Progress, stored_weights
from base_model.decoder.texts import opened_tokenizer
from base_model.graph_data import ONE_FILE
from protocol.decoder_manifest import IDS, MASK
from protocol.errors import ArtefactError

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
    tokenizer = opened_tokenizer(source.tokenizer, vocabulary=shape.vocabulary, source=source.name)
    ids = np.array(tokenizer.encode(text).ids[:MOST_TOKENS], np.int64)
    if len(ids) < LEAST_TOKENS:
        raise ArtefactError(
            f"the calibration text has {len(ids)} tokens", f"give it {LEAST_TOKENS} or more"
        )
    coarse = stored_weights(
        shape, source.tensors, bits=8, embedding_bits=8, tell=lambda _step, _share: None
    )
    size = min(PIECE, shape.context)
    pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "graph.onnx"
        watched = _write_watched(path, shape, coarse.tensors)
        session = open_graph(path)
        sums: dict[str, Floats] = {}
        for number, piece in enumerate(pieces):
            inputs = {IDS: piece[None], MASK: np.ones((1, len(piece)), np.int64)}
            names = [value.name for value in session.get_inputs()]
            answers = session.run(
                list(watched), {key: inputs[key] for key in names if key in inputs}
            )
            for output, squares in zip(watched, answers, strict=True):
                sums[output] = sums.get(output, np.float32(0)) + squares
            tell("calibrating", (number + 1) / len(pieces))
    means = {output: (total / len(ids)).astype(np.float32) for output, total in sums.items()}
    return {path: means[output] for output, paths in watched.items() for path in paths}


def has_floats(source: DecoderSource, shape: DecoderShape) -> bool:
    """Whether some linear has to be quantised, and does not come in codes of 4 bits."""
    weights = (source.tensors[f"{linear.path}.weight"] for linear in shape.linears())
    return any(not isinstance(weight, CodedWeight) or weight.bits != 4 for weight in weights)


def _write_watched(path: Path, shape: DecoderShape, weights: Stores) -> dict[str, list[str]]:
    """A graph whose outputs are sums of squares over tokens; the paths of the linears that each is for."""
    building = sequence_graph(shape, weights, slots=False)
    nodes, linears = building.nodes, {linear.path for linear in shape.linears()}
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
