"""Build a base that writes text, once, at the publisher: quantise, write the graph, compare, describe.

No torch is needed for it: the graph is written node by node, and what it is compared with is numpy.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
from safetensors.numpy import save_file

from base_model.decoder.calibration import has_floats, input_moments
from base_model.decoder.check import check_graph
from base_model.decoder.families import shape_of
from base_model.decoder.graph import generating_graph
from base_model.decoder.products import BLOCK
from base_model.decoder.shape import DecoderShape
from base_model.decoder.source import DecoderSource
from base_model.decoder.stored import Weights, file_tensors, is_affine, stored_weights
from base_model.decoder.texts import opened_tokenizer
from base_model.files import chunks_text, file_entries, folder_that_appears, writing
from base_model.graph_data import ONE_FILE, OPSET
from base_model.weights_file import WEIGHTS, tensor_entry
from protocol.chunks import CHUNKS
from protocol.decoder_manifest import (
    CHAT_TEMPLATE,
    IDS,
    LOGITS,
    MASK,
    DecoderManifest,
    decoder_fingerprint,
    parse_decoder_manifest,
)
from protocol.errors import ArtefactError, PlanError
from protocol.manifest import CONFIG, MANIFEST_NAME, TOKENIZER, Bits, Graph, Slot, TensorEntry

GRAPH = "graph.onnx"
ACCURACY_LEVEL = 0  # of linears: activations stay float32, what training computes with
MOST_CONTEXT = 2**15  # positions in the tables: two numbers each for every two of a head
# What differs between versions and machines, and does not change the function.
IRRELEVANT = (
    *("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"),
    *("id2label", "label2id", "use_cache"),
)
Progress = Callable[[str, float], None]


def build_decoder(
    source: DecoderSource,
    *,
    bits: int,
    out: Path,
    embedding_bits: int = 8,
    slots: bool = True,
    context: int = MOST_CONTEXT,
    one_file: int = ONE_FILE,
    calibration: str = "",
    progress: Progress | None = None,
    explain: Callable[[str], None] | None = None,
) -> DecoderManifest:
    """Build the folder ``out`` from ``source``; it appears whole or not at all.

    Args:
        source: what was read (``base_model.decoder.sources``).
        bits: of linears: 4 or 8 for codes, 16 or 32 for floats. Codes of the source that have as many
            are taken over as they are.
        out: a folder that does not exist yet, or is empty.
        embedding_bits: the same of the word embeddings and the output layer.
        slots: False leaves the graph without optional inputs; for comparison only.
        context: positions at most; fewer where the model has fewer.
        calibration: a text to learn from which inputs matter; codes of 4 bits are then made for them.
        one_file: bytes of tensors up to which the graph is one file.
        progress: called with a step's name and the share done so far.
        explain: called with each choice that was made and why.

    Raises PlanError for bits that are not offered, ArtefactError for the source or out, MachineError for
    what this machine lacks.
    """
    for option, value in (("--bits", bits), ("--embedding-bits", embedding_bits)):
        if value not in get_args(Bits):
            raise PlanError(f"{option} {value} is not offered", "use 4, 8, 16 or 32")
    if context < 1:
        raise PlanError(f"--context {context} is not offered", "use 1 or more positions")
    tell, say = progress or (lambda _step, _share: None), explain or (lambda _reason: None)
    with writing(out), folder_that_appears(out) as folder:
        shape = shape_of(source.config)
        _check_tokens(source, shape)
        importance = None
        if calibration and bits == 4 and has_floats(source, shape):
            importance = input_moments(source, shape, calibration, tell=tell)
        weights = stored_weights(
            shape,
            source.tensors,
            bits=bits,
            embedding_bits=embedding_bits,
            tell=lambda step, share: tell(step, 0.6 * share),
            importance=importance,
        )
        for reason in (*source.reasons, *weights.reasons):
            say(reason)
        if (positions := min(context, shape.context)) < shape.context:
            say(f"{positions} of {shape.context} positions, to keep the tables small")
        entries = _write_numbers(folder, source, weights, tell)
        declared = _write_graph(folder, shape, weights, positions, slots, one_file, tell)
        tell("describing", 0.95)
        (folder / CHUNKS).write_text(chunks_text(folder), "utf-8")
        manifest = _manifest(
            folder,
            source,
            shape,
            weights,
            entries,
            declared,
            context=positions,
            bits={"bits": bits, "embedding_bits": embedding_bits},
        )
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), "utf-8")
    tell("done", 1.0)
    return manifest


def _check_tokens(source: DecoderSource, shape: DecoderShape) -> None:
    opened_tokenizer(source.tokenizer, vocabulary=shape.vocabulary, source=source.name)
    for token in (*source.ends, source.begin or 0):
        if token >= shape.vocabulary:
            raise ArtefactError(
                f"{source.name}: the token {token} begins or ends texts, there are only "
                f"{shape.vocabulary} embeddings",
                "take model and tokenizer from the same place",
            )


def _write_numbers(
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
    context: int,
    slots: bool,
    one_file: int,
    tell: Progress,
) -> list[Slot]:
    tell("writing the graph", 0.7)
    nodes = generating_graph(shape, weights.tensors, context=context, slots=slots)
    nodes.save(folder / GRAPH, most=one_file)
    tell("comparing the graph with its weights", 0.8)
    check_graph(folder / GRAPH, shape, weights.tensors)
    return nodes.slots


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
    entries: dict[str, TensorEntry],
    slots: list[Slot],
    *,
    context: int,
    bits: dict[str, Any],
) -> DecoderManifest:
    files = file_entries(folder)
    architecture = {
        "family": shape.family,
        **bits,
        "block": BLOCK,
        "affine": is_affine(weights.tensors),
        "tied": shape.tied,
    }
    sizes = [*shape.matrices().values(), *shape.vectors().values()]
    manifest = DecoderManifest(
        **architecture,
        fingerprint=decoder_fingerprint(
            tensors=entries,
            architecture=architecture | {"config": files[CONFIG].sha256},
            tokenizer_sha256=files[TOKENIZER].sha256,
        ),
        source=Path(source.name).name if Path(source.name).is_absolute() else source.name,
        hidden_size=shape.hidden,
        embedding_size=shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_size=shape.head_size,
        vocab_size=shape.vocabulary,
        max_positions=context,
        begin=source.begin,
        ends=list(source.ends),
        embedding_std=weights.embedding_std,
        parameters=sum(int(np.prod(size)) for size in sizes),
        linears=shape.linears(),
        graph=Graph(
            file=GRAPH,
            opset=OPSET,
            accuracy_level=ACCURACY_LEVEL,
            inputs=[IDS, MASK],
            output=LOGITS,
            slots=slots,
        ),
        tensors=entries,
        files=files,
        made_with={
            name: importlib.metadata.version(name)
            for name in ("numpy", "onnx", "onnxruntime", "safetensors")
        },
    )
    return parse_decoder_manifest(manifest.to_json(), source=source.name)
