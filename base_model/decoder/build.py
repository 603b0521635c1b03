"""Build a base that writes text, once, at the publisher: quantise, write the graph, compare, describe.

No torch is needed for it: the graph is written node by node, and what it is compared with is numpy.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, Unpack

from safetensors.numpy import save_file

from base_model.decoder.calibration import has_floats, input_moments
from base_model.decoder.check import check_graph
from base_model.decoder.described import fields_of_base, graph_entry
from base_model.decoder.families import shape_of
from base_model.decoder.graph import generating_graph
from base_model.decoder.nodes import Nodes
from base_model.decoder.shape import DecoderShape
from base_model.decoder.source import DecoderSource
from base_model.decoder.stored import Weights, file_tensors, stored_weights
from base_model.decoder.texts import opened_tokenizer
from base_model.decoder.wanted import MOST_CONTEXT, Options, Wanted
from base_model.files import chunks_text, folder_that_appears, writing
from base_model.graph_data import ONE_FILE
from base_model.weights_file import WEIGHTS, tensor_entry
from protocol.chunks import CHUNKS
from protocol.decoder_manifest import (
    CHAT_TEMPLATE,
    IDS,
    LOGITS,
    MASK,
    DecoderManifest,
    parse_decoder_manifest,
)
from protocol.errors import ArtefactError
from protocol.joined import rank_inputs
from protocol.manifest import CONFIG, MANIFEST_NAME, TOKENIZER, BaseManifest, TensorEntry

GRAPH = "graph.onnx"
# What differs between versions and machines, and does not change the function.
IRRELEVANT = (
    *("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"),
    *("id2label", "label2id", "use_cache"),
)
Progress = Callable[[str, float], None]
M = TypeVar("M", bound=BaseManifest)


def build_decoder(
    source: DecoderSource,
    *,
    out: Path,
    progress: Progress | None = None,
    explain: Callable[[str], None] | None = None,
    **options: Unpack[Options],
) -> DecoderManifest:
    """Build the folder ``out`` from ``source``; it appears whole or not at all.

    Args:
        source: what was read (``base_model.decoder.sources``).
        out: a folder that does not exist yet, or is empty.
        progress: called with a step's name and the share done so far.
        explain: called with each choice that was made and why.
        options: those of :class:`Wanted`; without a context it is 32768, or fewer where the model has fewer.

    Raises PlanError for bits that are not offered, ArtefactError for the source or out, MachineError for
    what this machine lacks.
    """
    fill = partial(_fill, source=source, wanted=Wanted(**options))
    return filled_folder(out, fill, progress=progress, explain=explain)


def filled_folder(
    out: Path,
    fill: Callable[[Path, Progress, Callable[[str], None]], M],
    *,
    progress: Progress | None,
    explain: Callable[[str], None] | None,
) -> M:
    """A folder with what ``fill`` writes and the manifest that it returns; whole or not at all."""
    tell, say = progress or (lambda _step, _share: None), explain or (lambda _reason: None)
    with writing(out), folder_that_appears(out) as folder:
        manifest = fill(folder, tell, say)
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), "utf-8")
    tell("done", 1.0)
    return manifest


def _fill(
    folder: Path,
    tell: Progress,
    say: Callable[[str], None],
    *,
    source: DecoderSource,
    wanted: Wanted,
) -> DecoderManifest:
    """Every file of a base but its manifest, in the order of what is made from what."""
    shape = shape_of(source.config)
    check_tokens(source, shape.vocabulary)
    importance = None
    if wanted.calibration is not None and wanted.bits == 4:
        if has_floats(source, shape.linears()):
            importance = input_moments(source, shape, wanted.calibration, tell=tell)
        else:
            say("the source's codes of 4 bits are taken as they are: no text is needed to fit them")
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
    context = MOST_CONTEXT if wanted.context is None else wanted.context
    if context < shape.context:
        say(f"{context} of {shape.context} positions, to keep the tables small")
        shape = replace(shape, context=context)
    entries = write_numbers(folder, source, weights, tell)
    nodes = _write_graph(folder, shape, weights, wanted, tell)
    tell("describing", 0.95)
    (folder / CHUNKS).write_text(chunks_text(folder), "utf-8")
    return _manifest(folder, source, shape, weights, wanted, entries, nodes)


def check_tokens(source: DecoderSource, vocabulary: int) -> None:
    """The source's tokens are of its vocabulary. Raises ArtefactError."""
    opened_tokenizer(source.tokenizer, vocabulary=vocabulary, source=source.name)
    for token in (*source.ends, source.begin or 0):
        if token >= vocabulary:
            raise ArtefactError(
                f"{source.name}: the token {token} begins or ends texts, there are only "
                f"{vocabulary} embeddings",
                "take model and tokenizer from the same place",
            )


def write_numbers(
    folder: Path, source: DecoderSource, weights: Weights, tell: Progress
) -> dict[str, TensorEntry]:
    """All files but graph and manifest; returns what the fingerprint covers of the tensors."""
    tell("writing weights", 0.6)
    tensors = file_tensors(weights.tensors)
    save_file(tensors, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
    (folder / TOKENIZER).write_text(source.tokenizer, "utf-8")
    (folder / CONFIG).write_text(_config_text(source), "utf-8")
    if source.chat_template:
        (folder / CHAT_TEMPLATE).write_text(source.chat_template, "utf-8")
    return {name: tensor_entry(value) for name, value in tensors.items()}


def _write_graph(
    folder: Path,
    shape: DecoderShape,
    weights: Weights,
    wanted: Wanted,
    tell: Progress,
) -> Nodes:
    tell("writing the graph", 0.7)
    nodes = generating_graph(shape, weights.tensors, slots=wanted.slots, level=wanted.level)
    nodes.save(folder / GRAPH, most=ONE_FILE if wanted.one_file is None else wanted.one_file)
    tell("comparing the graph with its weights", 0.8)
    check_graph(folder / GRAPH, shape, weights.tensors, bound=wanted.bound)
    return nodes


def _config_text(source: DecoderSource) -> str:
    document: dict[str, Any] = {
        key: value for key, value in source.config.items() if key not in IRRELEVANT
    }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _manifest(
    folder: Path,
    source: DecoderSource,
    shape: DecoderShape,
    weights: Weights,
    wanted: Wanted,
    entries: dict[str, TensorEntry],
    nodes: Nodes,
) -> DecoderManifest:
    ranks = rank_inputs(shape.linears(), nodes.joined) if wanted.slots else []
    manifest = DecoderManifest(
        **fields_of_base(folder, source, shape, weights, wanted, entries, tag="decoder"),
        kv_heads=shape.kv_heads,
        begin=source.begin,
        graph=graph_entry(GRAPH, nodes.slots, [IDS, MASK, *ranks], LOGITS, wanted),
        joined=nodes.joined,
    )
    return parse_decoder_manifest(manifest.to_json(), source=source.name)
