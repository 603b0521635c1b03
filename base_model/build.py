"""Build a base, once, at the publisher: load, quantise, export, describe. (P-1.3)

Everyone else checks hashes; nobody quantises again.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from base_model.encoder import EncoderClassifier, word_embedding_std
from base_model.export import INPUTS, ONE_FILE, OPSET, OUTPUT, export_graph
from base_model.families import check_task
from base_model.files import chunks_text, file_entries, folder_that_appears, writing
from base_model.graph_check import check_graph
from base_model.quantised import BLOCK, Progress, config_text, linears_of, quantised
from base_model.source import Source, load_source
from base_model.store import GRAPH
from base_model.weights_file import WEIGHTS, tensor_entry
from protocol.chunks import CHUNKS
from protocol.errors import ArtefactError, PlanError
from protocol.manifest import (
    CONFIG,
    MANIFEST_NAME,
    TOKENIZER,
    TYPE_IDS,
    Graph,
    Head,
    Linear,
    Manifest,
    fingerprint,
)

ACCURACY_LEVEL = 0  # activations stay float32: what training computes with
MADE_WITH = ("torch", "transformers", "onnx", "onnxscript")


def build_base(
    source: str,
    *,
    task: str,
    bits: int,
    out: Path,
    pooling: str = "auto",
    slots: bool = True,
    scales: bool = False,
    one_file: int = ONE_FILE,
    progress: Progress | None = None,
    explain: Callable[[str], None] | None = None,
) -> Manifest:
    """Build the folder ``out`` from ``source``; it appears whole or not at all.

    Args:
        source: a Hugging Face folder or Hub id, or ``package:module/folder``.
        task: ``sequence-classification``.
        bits: 4 or 8 for codes, 16 or 32 for float weights (16: rounded to float16 values).
        out: a folder that does not exist yet, or is empty.
        pooling: auto (what the source says), mean, cls or pooler.
        slots: False leaves the graph without optional inputs; for comparison only.
        scales: linears get a slot for scales, which IA3 fills and which costs every answer 2 to 3 %.
        one_file: bytes of tensors up to which the graph is one file.
        progress: called with a step's name and the share done so far.
        explain: called with each choice that was made and why: the pooling, the source's own head.

    Raises PlanError for a task or bits that are not offered, ArtefactError for the source or out,
    MachineError for what this machine lacks: a package, the Hub, room.
    """
    check_task(task)
    if task != "sequence-classification":
        raise PlanError(f"task `{task}` is not built here", "use the builder of that task")
    if bits not in (4, 8, 16, 32):
        raise PlanError(f"--bits {bits} is not offered", "use 4, 8, 16 or 32")
    tell = progress or (lambda _step, _share: None)
    with writing(out), folder_that_appears(out) as folder:
        tell("loading", 0.0)
        loaded = load_source(source, pooling=pooling)
        for reason in loaded.reasons:
            if explain:
                explain(reason)
        manifest = _fill(
            folder, loaded, bits=bits, slots=slots, scales=scales, one_file=one_file, tell=tell
        )
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), "utf-8")
    tell("done", 1.0)
    return manifest


def _fill(
    folder: Path,
    source: Source,
    *,
    bits: int,
    slots: bool,
    scales: bool,
    one_file: int,
    tell: Progress,
) -> Manifest:
    """Every file of a base but its manifest, in the order of what is made from what."""
    model = _model_of(source)
    linears = linears_of(model)
    tensors, codes = quantised(model, linears, bits, tell)
    tell("writing weights", 0.5)
    save_file(tensors, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
    (folder / TOKENIZER).write_text(source.tokenizer, "utf-8")
    (folder / CONFIG).write_text(config_text(source.config, source.labels), "utf-8")
    tell("exporting the edge graph", 0.6)
    declared = export_graph(
        model,
        linears,
        codes,
        path=folder / GRAPH,
        bits=bits,
        block=BLOCK,
        accuracy_level=ACCURACY_LEVEL,
        slots=slots,
        scales=scales,
        most=one_file,
    )
    tell("opening the edge graph", 0.9)
    check_graph(folder / GRAPH, model, slots=slots)
    tell("describing", 0.95)
    (folder / CHUNKS).write_text(chunks_text(folder), "utf-8")
    return _manifest(source, model, linears, tensors, bits, folder, declared)


def _model_of(source: Source) -> EncoderClassifier:
    labels = len(source.labels) if source.labels else 2
    # eager attention exports to plain matrix products, in every family
    model = EncoderClassifier(
        source.config, pooling=source.pooling, labels=labels, attention="eager"
    )
    drawn = set(model.load_state_dict(source.tensors, strict=False).missing_keys)
    if stray := drawn - {"classifier.weight", "classifier.bias"}:
        raise ArtefactError(
            f"{source.name}: {min(stray)} is not in the checkpoint, and no adapter would bring it",
            "fetch a complete checkpoint",
        )
    with torch.no_grad():
        for name in drawn:  # the head, which lies in the base and in every adapter
            model.get_parameter(name).zero_()
    return model.float().eval().requires_grad_(False)


def _manifest(
    source: Source,
    model: EncoderClassifier,
    linears: list[Linear],
    tensors: dict[str, Tensor],
    bits: int,
    folder: Path,
    slots: list[Any],
) -> Manifest:
    entries = {name: tensor_entry(value.numpy()) for name, value in tensors.items()}
    files = file_entries(folder)
    architecture = {
        "family": source.family.model_type,
        "pooling": source.pooling,
        "bits": bits,
        "block": BLOCK,
        "config": files[CONFIG].sha256,
    }
    config = source.config
    return Manifest(
        fingerprint=fingerprint(
            tensors=entries, architecture=architecture, tokenizer_sha256=files[TOKENIZER].sha256
        ),
        source=Path(source.name).name if Path(source.name).is_absolute() else source.name,
        task="sequence-classification",
        family=source.family.model_type,
        pooling=source.pooling,
        bits=bits,  # type: ignore[arg-type]
        block=BLOCK,
        hidden_size=config.hidden_size,
        embedding_size=getattr(config, source.family.embedding),
        layers=config.num_hidden_layers,
        vocab_size=config.vocab_size,
        max_positions=source.family.positions(config),
        embedding_std=word_embedding_std(model),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        linears=linears,
        head=Head(
            path="classifier", in_features=config.hidden_size, labels=model.config.num_labels
        ),
        graph=Graph(
            file=GRAPH,
            opset=OPSET,
            accuracy_level=ACCURACY_LEVEL,
            inputs=[*INPUTS, *([] if model.type_table is None else [TYPE_IDS])],
            output=OUTPUT,
            slots=slots,
        ),
        tensors=entries,
        files=files,
        made_with={name: importlib.metadata.version(name) for name in MADE_WITH},
    )
