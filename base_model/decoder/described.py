"""What the manifests of bases that write text have in common, from what was written."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from base_model.decoder.products import BLOCK
from base_model.decoder.source import DecoderSource
from base_model.decoder.stored import Weights, is_affine
from base_model.decoder.wanted import Wanted
from base_model.files import file_entries
from base_model.graph_data import OPSET
from protocol.decoder_manifest import decoder_fingerprint
from protocol.manifest import CONFIG, TOKENIZER, Graph, Slot, TensorEntry

if TYPE_CHECKING:
    from base_model.decoder.shape import DecoderShape
    from base_model.seq2seq.shape import Seq2SeqShape


def fields_of_base(
    folder: Path,
    source: DecoderSource,
    shape: DecoderShape | Seq2SeqShape,
    weights: Weights,
    wanted: Wanted,
    entries: dict[str, TensorEntry],
    *,
    tag: str,
) -> dict[str, Any]:
    """All but the graphs and what one kind of base has alone; ``tag`` as :func:`decoder_fingerprint`."""
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
    return {
        **architecture,
        "fingerprint": decoder_fingerprint(
            tag=tag,
            tensors=entries,
            architecture=architecture | {"config": files[CONFIG].sha256},
            tokenizer_sha256=files[TOKENIZER].sha256,
        ),
        "source": _shown_name(source.name),
        "hidden_size": shape.hidden,
        "embedding_size": shape.hidden,
        "layers": shape.layers,
        "heads": shape.heads,
        "head_size": shape.head_size,
        "vocab_size": shape.vocabulary,
        "max_positions": shape.context,
        "ends": list(source.ends),
        "embedding_std": weights.embedding_std,
        "parameters": sum(int(np.prod(size)) for size in sizes),
        "linears": shape.linears(),
        "tensors": entries,
        "files": files,
        "made_with": _made_with(),
    }


def graph_entry(
    file: str, slots: list[Slot], inputs: list[str], output: str, wanted: Wanted
) -> Graph:
    """A graph that was written."""
    return Graph(
        file=file,
        opset=OPSET,
        accuracy_level=wanted.level,
        inputs=inputs,
        output=output,
        slots=slots,
    )


def _shown_name(source: str) -> str:
    """What a manifest calls its source: of a path no more than its end."""
    return Path(source).name if Path(source).is_absolute() else source


def _made_with() -> dict[str, str]:
    """The versions of what a base depends on, by name."""
    names = ("numpy", "onnx", "onnxruntime", "safetensors")
    return {name: importlib.metadata.version(name) for name in names}
