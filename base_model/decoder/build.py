"""Build a base that writes text, once, at the publisher: quantise, write the graph, compare, describe.

No torch is needed for it: the graph is written node by node, and what it is compared with is numpy.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
from safetensors.numpy import save_file

from base_model.decoder.calibration import has_floats, input_moments
from base_model.decoder.check import BOUND, PARTS, ROUNDED, check_graph
from base_model.decoder.families import shape_of
from base_model.decoder.graph import generating_graph
from base_model.decoder.nodes import Nodes
from base_model.decoder.products import BLOCK, FLOATS, WHOLE_NUMBERS
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
    WritingManifest,
    decoder_fingerprint,
    parse_decoder_manifest,
)
from protocol.errors import ArtefactError, PlanError
from protocol.joined import rank_inputs
from protocol.manifest import CONFIG, MANIFEST_NAME, TOKENIZER, Bits, Graph, TensorEntry

GRAPH = "graph.onnx"
# The accuracy level of linears by the bits of what they multiply. 32 is what training computes with.
LEVELS = {32: FLOATS, 8: WHOLE_NUMBERS}
LEAST_CONTEXT = 2  # positions: one to read, and one to write
MOST_CONTEXT = 2**15  # positions in the tables: two numbers each for every two of a head
# What differs between versions and machines, and does not change the function.
IRRELEVANT = (
    *("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"),
    *("id2label", "label2id", "use_cache"),
)
IN_PARTS = "linears in 8 bits multiply whole numbers in two parts: logits within some 1e-3"
ROUNDING = "linears round what they multiply to 8 bits: faster, logits a few percent off"
Progress = Callable[[str, float], None]
M = TypeVar("M", bound=WritingManifest)


def build_decoder(
    source: DecoderSource,
    *,
    bits: int,
    out: Path,
    embedding_bits: int = 8,
    activation_bits: int = 32,
    slots: bool = True,
    context: int | None = None,
    one_file: int = ONE_FILE,
    calibration: str | None = None,
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
        activation_bits: what linears in codes multiply: 32 for what training does, 8 to round it, which is
            faster and another text after some tokens. The base is the same, adapters fit both.
        slots: False leaves the graph without optional inputs; for comparison only.
        context: positions at most; without it 32768, or fewer where the model has fewer.
        calibration: a text to learn from which inputs matter; codes of 4 bits are then made for them.
            It is not read where no codes of 4 bits are to be made.
        one_file: bytes of tensors up to which the graph is one file.
        progress: called with a step's name and the share done so far.
        explain: called with each choice that was made and why.

    Raises PlanError for bits that are not offered, ArtefactError for the source or out, MachineError for
    what this machine lacks.
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
    return filled_folder(
        out, partial(_fill, source=source, wanted=wanted), progress=progress, explain=explain
    )


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


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a publisher asks for; see :func:`build_decoder`."""

    bits: int
    embedding_bits: int
    activation_bits: int
    slots: bool
    context: int
    one_file: int
    calibration: str | None

    @property
    def bound(self) -> float:
        """How far a graph may be from its weights."""
        exact = PARTS if self.bits == 8 else BOUND
        return exact if LEVELS[self.activation_bits] == FLOATS else ROUNDED

    def verify_offered(self) -> None:
        """Raises PlanError that names the option."""
        for option, value in (("--bits", self.bits), ("--embedding-bits", self.embedding_bits)):
            if value not in get_args(Bits):
                raise PlanError(f"{option} {value} is not offered", "use 4, 8, 16 or 32")
        if self.activation_bits not in LEVELS:
            raise PlanError(
                f"--activation-bits {self.activation_bits} is not offered", "use 8 or 32"
            )
        if self.context < LEAST_CONTEXT:
            raise PlanError(
                f"--context {self.context} is not offered", f"use {LEAST_CONTEXT} or more positions"
            )


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
    for reason in (*source.reasons, *weights.reasons):
        say(reason)
    if reason := rounding(wanted):
        say(reason)
    if wanted.context < shape.context:
        say(f"{wanted.context} of {shape.context} positions, to keep the tables small")
        shape = replace(shape, context=wanted.context)
    entries = write_numbers(folder, source, weights, tell)
    nodes = _write_graph(folder, shape, weights, wanted, tell)
    tell("describing", 0.95)
    (folder / CHUNKS).write_text(chunks_text(folder), "utf-8")
    return _manifest(folder, source, shape, weights, wanted, entries, nodes)


def rounding(wanted: Wanted) -> str:
    """What is to be said of how linears multiply."""
    if wanted.activation_bits == 8:
        return ROUNDING
    return IN_PARTS if wanted.bits == 8 else ""


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
    level = LEVELS[wanted.activation_bits]
    nodes = generating_graph(shape, weights.tensors, slots=wanted.slots, level=level)
    nodes.save(folder / GRAPH, most=wanted.one_file)
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
    files = file_entries(folder)
    architecture: dict[str, Any] = {
        "family": shape.family,
        "bits": wanted.bits,
        "embedding_bits": wanted.embedding_bits,
        "block": BLOCK,
        "affine": is_affine(weights.tensors),
        "tied": shape.tied,
    }
    sizes = [*shape.matrices().values(), *shape.vectors().values()]
    linears = shape.linears()
    manifest = DecoderManifest(
        **architecture,
        fingerprint=decoder_fingerprint(
            tensors=entries,
            architecture=architecture | {"config": files[CONFIG].sha256},
            tokenizer_sha256=files[TOKENIZER].sha256,
        ),
        source=shown_name(source.name),
        hidden_size=shape.hidden,
        embedding_size=shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_size=shape.head_size,
        vocab_size=shape.vocabulary,
        max_positions=shape.context,
        begin=source.begin,
        ends=list(source.ends),
        embedding_std=weights.embedding_std,
        parameters=sum(int(np.prod(size)) for size in sizes),
        linears=linears,
        graph=Graph(
            file=GRAPH,
            opset=OPSET,
            accuracy_level=LEVELS[wanted.activation_bits],
            inputs=[IDS, MASK, *(rank_inputs(linears, nodes.joined) if wanted.slots else [])],
            output=LOGITS,
            slots=nodes.slots,
        ),
        joined=nodes.joined,
        tensors=entries,
        files=files,
        made_with=made_with(),
    )
    return parse_decoder_manifest(manifest.to_json(), source=source.name)


def shown_name(source: str) -> str:
    """What a manifest calls its source: of a path no more than its end."""
    return Path(source).name if Path(source).is_absolute() else source


def made_with() -> dict[str, str]:
    """The versions of what a base depends on, by name."""
    names = ("numpy", "onnx", "onnxruntime", "safetensors")
    return {name: importlib.metadata.version(name) for name in names}
