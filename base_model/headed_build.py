"""What building a base with a head is, whatever it reads: texts (P-1.3) or other media (P-1.15, P-1.16)."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from base_model.encoder import HeadedModel
from base_model.export import OPSET, OUTPUT
from base_model.files import chunks_text, file_entries, folder_that_appears, writing
from base_model.graph_linears import Codes
from base_model.quantised import BLOCK, Progress, config_text, linears_of, quantised
from base_model.store import GRAPH
from base_model.weights_file import WEIGHTS, tensor_entry
from protocol.chunks import CHUNKS
from protocol.errors import ArtefactError, PlanError
from protocol.manifest import CONFIG, MANIFEST_NAME, Graph, Head, HeadManifest, Linear, Slot

ACCURACY_LEVEL = 0  # activations stay float32: what training computes with
MADE_WITH = ("torch", "transformers", "onnx", "onnxscript")
HEAD = {"classifier.weight", "classifier.bias"}  # what a checkpoint may lack


class HeadedSource(Protocol):
    """A loaded source, of texts or of another medium."""

    @property
    def name(self) -> str:
        """As the publisher wrote it."""
        ...

    @property
    def config(self) -> PretrainedConfig:
        """Its ``config.json``."""
        ...

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Of the base's model, by its names."""
        ...

    @property
    def labels(self) -> list[str] | None:
        """Names of its own head's, where that is kept."""
        ...

    @property
    def reasons(self) -> tuple[str, ...]:
        """What was chosen, and why."""
        ...


S = TypeVar("S", bound=HeadedSource)
Model = TypeVar("Model", bound=HeadedModel)
M = TypeVar("M", bound=HeadManifest)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a folder holds of a model: its linears, its tensors for the manifest, its codes for the graph."""

    linears: list[Linear]
    tensors: dict[str, Tensor]
    codes: Codes


def build_folder(
    out: Path,
    *,
    bits: int,
    load: Callable[[], S],
    fill: Callable[[Path, S, Progress], M],
    progress: Progress | None,
    explain: Callable[[str], None] | None,
) -> M:
    """``out`` appears whole, with the manifest that ``fill`` gives of its other files, or not at all.

    Raises PlanError for bits that are not offered, what ``load`` and ``fill`` raise, ArtefactError for out.
    """
    if bits not in (4, 8, 16, 32):
        raise PlanError(f"--bits {bits} is not offered", "use 4, 8, 16 or 32")
    tell = progress or (lambda _step, _share: None)
    with writing(out), folder_that_appears(out) as folder:
        tell("loading", 0.0)
        source = load()
        for reason in source.reasons:
            if explain:
                explain(reason)
        manifest = fill(folder, source, tell)
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), "utf-8")
    tell("done", 1.0)
    return manifest


def filled(model: Model, source: HeadedSource) -> Model:
    """``model`` with the source's numbers, a head that it has not being zero. Raises ArtefactError."""
    drawn = set(model.load_state_dict(source.tensors, strict=False).missing_keys)
    if stray := drawn - HEAD:
        raise ArtefactError(
            f"{source.name}: {min(stray)} is not in the checkpoint, and no adapter would bring it",
            "fetch a complete checkpoint",
        )
    with torch.no_grad():
        for name in drawn:  # the head, which lies in the base and in every adapter
            model.get_parameter(name).zero_()
    return model.float().eval().requires_grad_(False)


def write_numbers(
    folder: Path, model: HeadedModel, source: HeadedSource, bits: int, tell: Progress
) -> Written:
    """Weights and config; ``model`` ends up with the values that codes stand for."""
    linears = linears_of(model)
    tensors, codes = quantised(model, linears, bits, tell)
    tell("writing weights", 0.5)
    save_file(tensors, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
    (folder / CONFIG).write_text(config_text(source.config, source.labels), "utf-8")
    return Written(linears=linears, tensors=tensors, codes=codes)


def described(
    folder: Path,
    model: HeadedModel,
    source: HeadedSource,
    written: Written,
    *,
    bits: int,
    inputs: list[str],
    slots: list[Slot],
) -> dict[str, Any]:
    """The manifest's fields that every base with a head has, of the folder's files, which are all there."""
    (folder / CHUNKS).write_text(chunks_text(folder), "utf-8")
    config, path = source.config, Path(source.name)
    return {
        "source": path.name if path.is_absolute() else source.name,
        "bits": bits,
        "block": BLOCK,
        "hidden_size": config.hidden_size,
        "layers": config.num_hidden_layers,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "linears": written.linears,
        "head": Head(
            path="classifier",
            in_features=model.classifier.in_features,
            labels=model.config.num_labels,
        ),
        "graph": Graph(
            file=GRAPH,
            opset=OPSET,
            accuracy_level=ACCURACY_LEVEL,
            inputs=inputs,
            output=OUTPUT,
            slots=slots,
        ),
        "tensors": {name: tensor_entry(value.numpy()) for name, value in written.tensors.items()},
        "files": file_entries(folder),
        "made_with": {name: importlib.metadata.version(name) for name in MADE_WITH},
    }
