"""Build a base of images, once, at the publisher. (P-1.15)"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from base_model.build import ACCURACY_LEVEL, MADE_WITH
from base_model.export import ONE_FILE, OPSET, OUTPUT
from base_model.files import chunks_text, file_entries, folder_that_appears, writing
from base_model.graph_check import verify_features
from base_model.images.classifier import ImageClassifier
from base_model.images.export import export_images
from base_model.images.source import ImageSource, load_images
from base_model.quantised import BLOCK, Progress, config_text, linears_of, quantised
from base_model.store import GRAPH
from base_model.weights_file import WEIGHTS, tensor_entry
from protocol.chunks import CHUNKS
from protocol.errors import PlanError
from protocol.image_manifest import PIXELS, ImageManifest, image_fingerprint_of
from protocol.manifest import CONFIG, IMAGES, MANIFEST_NAME, Graph, Head, Linear, Slot


def build_images(
    source: str,
    *,
    bits: int,
    out: Path,
    scales: bool = False,
    one_file: int = ONE_FILE,
    progress: Progress | None = None,
    explain: Callable[[str], None] | None = None,
) -> ImageManifest:
    """Build the folder ``out`` from ``source``, as :func:`base_model.build.build_base` does of texts.

    Raises PlanError for bits that are not offered, ArtefactError for the source or out, MachineError for
    what this machine lacks.
    """
    if bits not in (4, 8, 16, 32):
        raise PlanError(f"--bits {bits} is not offered", "use 4, 8, 16 or 32")
    tell = progress or (lambda _step, _share: None)
    with writing(out), folder_that_appears(out) as folder:
        tell("loading", 0.0)
        loaded = load_images(source)
        for reason in loaded.reasons:
            if explain:
                explain(reason)
        manifest = _fill(folder, loaded, bits=bits, scales=scales, one_file=one_file, tell=tell)
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), "utf-8")
    tell("done", 1.0)
    return manifest


def _fill(
    folder: Path, source: ImageSource, *, bits: int, scales: bool, one_file: int, tell: Progress
) -> ImageManifest:
    """Every file of a base but its manifest, in the order of what is made from what."""
    model = _model_of(source)
    linears = linears_of(model)
    tensors, codes = quantised(model, linears, bits, tell)
    tell("writing weights", 0.5)
    save_file(tensors, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
    (folder / CONFIG).write_text(config_text(source.config, source.labels), "utf-8")
    tell("exporting the edge graph", 0.6)
    slots = export_images(
        model,
        linears,
        codes,
        path=folder / GRAPH,
        shape=source.pixels.shape,
        bits=bits,
        block=BLOCK,
        accuracy_level=ACCURACY_LEVEL,
        scales=scales,
        most=one_file,
    )
    tell("opening the edge graph", 0.9)
    check_images(folder / GRAPH, model, source.pixels.shape)
    tell("describing", 0.95)
    (folder / CHUNKS).write_text(chunks_text(folder), "utf-8")
    return _manifest(source, model, linears, tensors, bits, folder, slots)


def check_images(path: Path, model: ImageClassifier, shape: tuple[int, int, int]) -> None:
    """``path`` opens in ONNX Runtime and gives ``model``'s features. Raises ArtefactError."""
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.features(images).numpy()
    verify_features(path, {PIXELS: images.numpy()}, features)


def _model_of(source: ImageSource) -> ImageClassifier:
    labels = len(source.labels) if source.labels else 2
    # eager attention exports to plain matrix products
    model = ImageClassifier(source.config, labels=labels, attention="eager")
    drawn = model.load_state_dict(source.tensors, strict=False).missing_keys
    with torch.no_grad():
        for name in drawn:  # the head, which lies in the base and in every adapter
            model.get_parameter(name).zero_()
    return model.float().eval().requires_grad_(False)


def _manifest(
    source: ImageSource,
    model: ImageClassifier,
    linears: list[Linear],
    tensors: dict[str, Tensor],
    bits: int,
    folder: Path,
    slots: list[Slot],
) -> ImageManifest:
    config = source.config
    manifest = ImageManifest(
        fingerprint="0" * 64,
        source=Path(source.name).name if Path(source.name).is_absolute() else source.name,
        task=IMAGES,
        family=source.family.model_type,
        pooling="cls",
        pixels=source.pixels,
        bits=bits,  # type: ignore[arg-type]
        block=BLOCK,
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        max_positions=source.family.positions(config),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        linears=linears,
        head=Head(
            path="classifier", in_features=config.hidden_size, labels=model.config.num_labels
        ),
        graph=Graph(
            file=GRAPH,
            opset=OPSET,
            accuracy_level=ACCURACY_LEVEL,
            inputs=[PIXELS],
            output=OUTPUT,
            slots=slots,
        ),
        tensors={name: tensor_entry(value.numpy()) for name, value in tensors.items()},
        files=file_entries(folder),
        made_with={name: importlib.metadata.version(name) for name in MADE_WITH},
    )
    return manifest.model_copy(update={"fingerprint": image_fingerprint_of(manifest)})
