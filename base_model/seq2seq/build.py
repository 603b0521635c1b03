"""Build a base that turns a text into another, once, at the publisher; without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from base_model.decoder.build import (
    LEVELS,
    MOST_CONTEXT,
    Progress,
    Wanted,
    check_tokens,
    filled_folder,
    made_with,
    rounding,
    shown_name,
    write_numbers,
)
from base_model.decoder.calibration import (
    calibration_pieces,
    coarse_weights,
    has_floats,
    watched_moments,
)
from base_model.decoder.nodes import Nodes, save_graphs
from base_model.decoder.products import BLOCK
from base_model.decoder.source import DecoderSource, Floats
from base_model.decoder.stored import Weights, is_affine, stored_weights
from base_model.files import chunks_text, file_entries
from base_model.graph_data import OPSET
from base_model.programs.token_loss import TARGET
from base_model.seq2seq.check import check_graphs
from base_model.seq2seq.families import shape_of
from base_model.seq2seq.graph import decoder_graph, encoder_graph, whole_graph
from base_model.seq2seq.shape import Seq2SeqShape
from protocol.chunks import CHUNKS
from protocol.decoder_manifest import IDS, LOGITS, MASK, decoder_fingerprint
from protocol.manifest import CONFIG, TOKENIZER, Graph, TensorEntry
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
    bits: int,
    out: Path,
    embedding_bits: int = 8,
    activation_bits: int = 32,
    slots: bool = True,
    context: int | None = None,
    one_file: int = 0,
    calibration: str | None = None,
    progress: Progress | None = None,
    explain: Callable[[str], None] | None = None,
) -> Seq2SeqManifest:
    """Build the folder ``out``, as :func:`base_model.decoder.build.build_decoder` does, from ``source``.

    ``context``: tokens of either text at most, up to 32768; without it what the config says, else 512.
    ``one_file``: bytes of tensors up to which they lie in the graphs; else in a file beside both, where the
    words, which both graphs read, are there once. Raises the same.
    """
    wanted = Wanted(
        bits=bits,
        embedding_bits=embedding_bits,
        activation_bits=activation_bits,
        slots=slots,
        context=MOST_CONTEXT if context is None else context,
        one_file=one_file,
        calibration=calibration,
    )
    wanted.verify_offered()
    shape = shape_of(source.config)
    if context is not None:  # where positions are relative, no table bounds a text
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
    for reason in (*source.reasons, *weights.reasons, rounding(wanted)):
        if reason:
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
    level = LEVELS[wanted.activation_bits]
    encoder = encoder_graph(shape, weights.tensors, slots=wanted.slots, level=level)
    decoder = decoder_graph(shape, weights.tensors, slots=wanted.slots, level=level)
    save_graphs({folder / ENCODER: encoder, folder / DECODER: decoder}, most=wanted.one_file)
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
    files = file_entries(folder)
    architecture: dict[str, Any] = {
        "family": shape.family,
        "bits": wanted.bits,
        "embedding_bits": wanted.embedding_bits,
        "block": BLOCK,
        "affine": is_affine(weights.tensors),
        "tied": shape.tied,
    }
    encoder, decoder = graphs
    manifest = Seq2SeqManifest(
        **architecture,
        fingerprint=decoder_fingerprint(
            tag=TAG,
            tensors=entries,
            architecture=architecture | {"config": files[CONFIG].sha256},
            tokenizer_sha256=files[TOKENIZER].sha256,
        ),
        source=shown_name(source.name),
        **_sizes(shape),
        ends=list(source.ends),
        embedding_std=weights.embedding_std,
        linears=shape.linears(),
        encoder=_graph(ENCODER, encoder, [IDS, MASK], STATES, wanted),
        graph=_graph(DECODER, decoder, [IDS, MASK, SOURCE_MASK], LOGITS, wanted),
        tensors=entries,
        files=files,
        made_with=made_with(),
    )
    return parse_seq2seq_manifest(manifest.to_json(), source=source.name)


def _sizes(shape: Seq2SeqShape) -> dict[str, Any]:
    """What a manifest says of a shape in numbers."""
    sizes = [*shape.matrices().values(), *shape.vectors().values()]
    return {
        "hidden_size": shape.hidden,
        "embedding_size": shape.hidden,
        "encoder_layers": shape.encoder_layers,
        "layers": shape.layers,
        "heads": shape.heads,
        "kv_heads": shape.heads,
        "head_size": shape.head_size,
        "vocab_size": shape.vocabulary,
        "max_positions": shape.context,
        "start": shape.start,
        "padding": shape.padding,
        "parameters": sum(int(np.prod(size)) for size in sizes),
    }


def _graph(file: str, nodes: Nodes, inputs: list[str], output: str, wanted: Wanted) -> Graph:
    return Graph(
        file=file,
        opset=OPSET,
        accuracy_level=LEVELS[wanted.activation_bits],
        inputs=inputs,
        output=output,
        slots=nodes.slots,
    )
