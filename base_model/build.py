"""Build a base, once, at the publisher: load, quantise, export, describe. (P-1.3)

Everyone else checks hashes; nobody quantises again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from base_model.encoder import EncoderClassifier, word_embedding_std
from base_model.export import INPUTS, ONE_FILE, export_graph
from base_model.families import check_task
from base_model.graph_check import check_graph
from base_model.headed_build import (
    ACCURACY_LEVEL,
    build_folder,
    described,
    filled,
    write_numbers,
)
from base_model.quantised import BLOCK, Progress
from base_model.source import Source, load_source
from base_model.store import GRAPH
from protocol.errors import PlanError
from protocol.manifest import BOXES, DOCUMENTS, TOKENIZER, TYPE_IDS, Manifest


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
        task: ``sequence-classification``, or ``document-classification`` of words with their boxes.
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
    if task not in ("sequence-classification", DOCUMENTS):
        raise PlanError(f"task `{task}` is not built here", "use the builder of that task")
    return build_folder(
        out,
        bits=bits,
        load=lambda: load_source(source, pooling=pooling, task=task),
        fill=lambda folder, loaded, tell: _fill(
            folder, loaded, bits=bits, slots=slots, scales=scales, one_file=one_file, tell=tell
        ),
        progress=progress,
        explain=explain,
    )


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
    model = model_of(source)
    written = write_numbers(folder, model, source, bits, tell)
    (folder / TOKENIZER).write_text(source.tokenizer, "utf-8")
    tell("exporting the edge graph", 0.6)
    declared = export_graph(
        model,
        written.linears,
        written.codes,
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
    inputs = [*INPUTS, *([] if model.type_table is None else [TYPE_IDS])]
    inputs += [BOXES] if source.family.boxed else []
    fields = described(folder, model, source, written, bits=bits, inputs=inputs, slots=declared)
    return _manifest(source, model, fields)


def model_of(source: Source) -> EncoderClassifier:
    """The base's model in float32, as the source has it. Raises ArtefactError."""
    labels = len(source.labels) if source.labels else 2
    # eager attention exports to plain matrix products, in every family
    model = EncoderClassifier(
        source.config, pooling=source.pooling, labels=labels, attention="eager"
    )
    return filled(model, source)


def _manifest(source: Source, model: EncoderClassifier, fields: dict[str, Any]) -> Manifest:
    config = source.config
    manifest = Manifest(
        fingerprint="0" * 64,
        task=DOCUMENTS if source.family.boxed else "sequence-classification",
        family=source.family.model_type,
        pooling=source.pooling,
        embedding_size=getattr(config, source.family.embedding),
        vocab_size=config.vocab_size,
        max_positions=source.family.positions(config),
        embedding_std=word_embedding_std(model),
        **fields,
    )
    return manifest.fingerprinted()
