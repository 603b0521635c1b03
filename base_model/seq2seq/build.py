"""Build a base that turns a text into another, once, at the publisher; without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
from onnx import TensorProto

from base_model.decoder.build import Progress, check_tokens, filled_folder, write_numbers
from base_model.decoder.calibration import (
    calibration_pieces,
    coarse_weights,
    has_floats,
    watched_moments,
)
from base_model.decoder.described import fields_of_base, graph_entry
from base_model.decoder.nodes import Nodes, save_graphs
from base_model.decoder.source import DecoderSource, Floats
from base_model.decoder.stored import Weights, stored_weights
from base_model.decoder.wanted import MOST_CONTEXT, Options, Wanted
from base_model.files import chunks_text
from base_model.programs.token_loss import TARGET
from base_model.seq2seq.check import check_graphs
from base_model.seq2seq.families import shape_of
from base_model.seq2seq.graph import decoder_graph, encoder_graph, whole_graph
from base_model.seq2seq.shape import Seq2SeqShape
from protocol.chunks import CHUNKS
from protocol.decoder_manifest import IDS, LOGITS, MASK
from protocol.manifest import TensorEntry
from protocol.seq2seq_manifest import (
    SOURCE_MASK,
    STATES,
    TAG,
    Seq2SeqManifest,
    parse_seq2seq_manifest,
)

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"


def build_seq2seq(
    source: DecoderSource,
    *,
    out: Path,
    progress: Progress | None = None,
    explain: Callable[[str], None] | None = None,
    **options: Unpack[Options],
) -> Seq2SeqManifest:
    """Build the folder ``out``, as :func:`base_model.decoder.build.build_decoder` does, from ``source``.

    ``context``: tokens of either text at most, up to 32768; without it what the config says, else 512.
    ``one_file``: 0 without it; above, tensors lie in a file beside both graphs, where the words, which both
    read, are there once. Raises the same.
    """
    wanted = Wanted(**options)
    shape = shape_of(source.config)
    if (
        context := wanted.context
    ) is not None:  # where positions are relative, no table bounds a text
        shape = replace(shape, context=min(context, shape.context) if shape.table else context)
    shape = replace(shape, context=min(shape.context, MOST_CONTEXT))
    fill = partial(_fill, source=source, shape=shape, wanted=wanted)
    return filled_folder(out, fill, progress=progress, explain=explain)


def _fill(
    folder: Path,
    tell: Progress,
    say: Callable[[str], None],
    *,
    source: DecoderSource,
    shape: Seq2SeqShape,
    wanted: Wanted,
) -> Seq2SeqManifest:
    """Every file of a base but its manifest, in the order of what is made from what."""
    check_tokens(source, shape.vocabulary)
    importance = None
    if wanted.calibration is not None and wanted.bits == 4 and has_floats(source, shape.linears()):
        importance = _moments(source, shape, wanted.calibration, tell)
    weights = stored_weights(
        shape,
        source.tensors,
        bits=wanted.bits,
        embedding_bits=wanted.embedding_bits,
        tell=lambda step, share: tell(step, 0.6 * share),
        importance=importance,
    )
    for reason in filter(None, (*source.reasons, *weights.reasons, wanted.rounding)):
        say(reason)
    entries = write_numbers(folder, source, weights, tell)
    graphs = _write_graphs(folder, shape, weights, wanted, tell)
    tell("describing", 0.95)
    (folder / CHUNKS).write_text(chunks_text(folder), "utf-8")
    return _manifest(folder, source, shape, weights, wanted, entries, graphs)


def _moments(
    source: DecoderSource, shape: Seq2SeqShape, text: str, tell: Progress
) -> dict[str, Floats]:
    """Mean squares of what linears read, where each piece of a text is read and written again."""
    pieces = calibration_pieces(source, shape.vocabulary, text, most=shape.context)
    building = whole_graph(shape, coarse_weights(source, shape), slots=False)
    building.nodes.input(TARGET, TensorProto.INT64, ["rows", "tokens"])
    feeds = [{IDS: piece, MASK: np.ones_like(piece), TARGET: piece} for piece in pieces]
    linears = [linear.path for linear in shape.linears()]
    return watched_moments(building, linears, feeds, tell=tell)


def _write_graphs(
    folder: Path, shape: Seq2SeqShape, weights: Weights, wanted: Wanted, tell: Progress
) -> tuple[Nodes, Nodes]:
    tell("writing the graphs", 0.7)
    encoder = encoder_graph(shape, weights.tensors, slots=wanted.slots, level=wanted.level)
    decoder = decoder_graph(shape, weights.tensors, slots=wanted.slots, level=wanted.level)
    save_graphs({folder / ENCODER: encoder, folder / DECODER: decoder}, most=wanted.one_file or 0)
    tell("comparing the graphs with their weights", 0.8)
    check_graphs(folder / ENCODER, folder / DECODER, shape, weights.tensors, bound=wanted.bound)
    return encoder, decoder


def _manifest(
    folder: Path,
    source: DecoderSource,
    shape: Seq2SeqShape,
    weights: Weights,
    wanted: Wanted,
    entries: dict[str, TensorEntry],
    graphs: tuple[Nodes, Nodes],
) -> Seq2SeqManifest:
    encoder, decoder = graphs
    manifest = Seq2SeqManifest(
        **fields_of_base(folder, source, shape, weights, wanted, entries, tag=TAG),
        kv_heads=shape.heads,
        encoder_layers=shape.encoder_layers,
        start=shape.start,
        padding=shape.padding,
        encoder=graph_entry(ENCODER, encoder.slots, [IDS, MASK], STATES, wanted),
        graph=graph_entry(DECODER, decoder.slots, [IDS, MASK, SOURCE_MASK], LOGITS, wanted),
    )
    return parse_seq2seq_manifest(manifest.to_json(), source=source.name)
