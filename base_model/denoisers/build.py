"""Build a base that draws, once, at the publisher. (P-1.18)"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from base_model.decoder.build import filled_folder
from base_model.decoder.check import open_graph, verify_near
from base_model.decoder.products import Stored
from base_model.decoder.source import CodedWeight
from base_model.decoder.stored import file_tensors
from base_model.denoisers.families import ABOUT, CLASS_NAME, FAMILY
from base_model.denoisers.graph import denoising_graph
from base_model.denoisers.shape import DenoiserShape
from base_model.denoisers.source import DenoiserSource, denoiser_source
from base_model.files import chunks_text, file_entries
from base_model.graph_data import ONE_FILE, OPSET
from base_model.quantised import BLOCK, Progress
from base_model.weights_file import WEIGHTS, tensor_entry
from protocol.chunks import CHUNKS
from protocol.codes import quantise
from protocol.denoiser_manifest import (
    CLASSES,
    IMAGES,
    NOISE,
    STEPS,
    DenoiserManifest,
    drawn_pixels,
)
from protocol.errors import ArtefactError, PlanError
from protocol.manifest import CONFIG, Graph, Slot

GRAPH = "graph.onnx"
BOUND = 1e-4  # of the norm of the noise; rounding makes some 1e-6
MADE_WITH = ("numpy", "onnx", "onnxruntime", "safetensors", "torch")


def build_denoiser(
    source: str,
    *,
    bits: int,
    out: Path,
    scales: bool = False,
    seconds: int = 0,
    one_file: int = ONE_FILE,
    progress: Progress | None = None,
    explain: Callable[[str], None] | None = None,
) -> DenoiserManifest:
    """Build the folder ``out`` from a pipeline's, as :func:`base_model.media_build.build_media` does.

    Raises PlanError for bits that are not offered, and for scales and seconds, which it has not,
    ArtefactError for the source or out, MachineError for what this machine lacks.
    """
    if bits not in (4, 8, 16, 32):
        raise PlanError(f"--bits {bits} is not offered", "use 4, 8, 16 or 32")
    if scales or seconds:
        name = "--scales" if scales else "--seconds"
        raise PlanError(f"{name} is not for bases that draw images", "leave it out")
    fill = partial(_fill, source=source, bits=bits, one_file=one_file)
    return filled_folder(out, fill, progress=progress, explain=explain)


def _fill(
    folder: Path,
    tell: Progress,
    say: Callable[[str], None],
    *,
    source: str,
    bits: int,
    one_file: int,
) -> DenoiserManifest:
    """Every file of a base but its manifest, in the order of what is made from what."""
    tell("loading", 0.0)
    loaded = denoiser_source(source)
    shape = loaded.shape
    if shape.outputs > shape.channels:
        say("the variance that the model learnt beside the noise is not used")
    weights = stored_weights(loaded, bits, tell)
    tell("writing weights", 0.5)
    tensors = file_tensors(weights)
    save_file(tensors, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
    (folder / CONFIG).write_text(_config_text(loaded.config), "utf-8")
    tell("writing the graph", 0.7)
    nodes = denoising_graph(shape, weights)
    nodes.save(folder / GRAPH, most=one_file)
    tell("comparing the graph with its weights", 0.8)
    check_graph(folder / GRAPH, shape, weights)
    tell("describing", 0.95)
    (folder / CHUNKS).write_text(chunks_text(folder), "utf-8")
    manifest = DenoiserManifest(
        fingerprint="0" * 64,
        task="image-generation",
        family=FAMILY,
        pixels=drawn_pixels(shape.channels, shape.side),
        schedule=loaded.schedule,
        classes=shape.classes,
        tensors={name: tensor_entry(value) for name, value in tensors.items()},
        **_described(folder, loaded, nodes.slots, bits),
    )
    return manifest.fingerprinted()


def _described(
    folder: Path, source: DenoiserSource, slots: list[Slot], bits: int
) -> dict[str, Any]:
    """The manifest's fields that every base has, of the folder's files, which are all there."""
    path, shape = Path(source.name), source.shape
    return {
        "source": path.name if path.is_absolute() else source.name,
        "bits": bits,
        "block": BLOCK,
        "hidden_size": shape.hidden,
        "layers": shape.layers,
        "max_positions": shape.patches,
        "parameters": sum(value.size for value in source.tensors.values()),
        "linears": shape.linears(),
        "graph": Graph(
            file=GRAPH,
            opset=OPSET,
            accuracy_level=0,
            inputs=[IMAGES, STEPS, CLASSES],
            output=NOISE,
            slots=slots,
        ),
        "files": file_entries(folder),
        "made_with": {name: importlib.metadata.version(name) for name in MADE_WITH},
    }


def stored_weights(source: DenoiserSource, bits: int, tell: Progress) -> dict[str, Stored]:
    """Every tensor as a base keeps it: matrices in ``bits``, all else in float32."""
    stored: dict[str, Stored] = {}
    matrices = source.shape.matrices()
    for number, path in enumerate(matrices):
        weight = source.tensors[f"{path}.weight"]
        stored[f"{path}.weight"] = _matrix(path, weight, bits)
        tell(f"quantising to {bits} bits", 0.1 + 0.4 * number / len(matrices))
    return stored | {name: source.tensors[name] for name in source.shape.vectors()}


def _matrix(path: str, weight: np.ndarray[Any, np.dtype[np.float32]], bits: int) -> Stored:
    if bits == 32:
        return weight
    if bits == 16:
        half = weight.astype(np.float16)
        if not np.isfinite(half).all():
            raise ArtefactError(f"{path} has numbers beyond the range of 16 bits", "use --bits 32")
        return half
    codes, scales = quantise(weight, bits=bits, block=BLOCK)
    return CodedWeight(bits=bits, codes=codes, scales=scales)


def _config_text(config: dict[str, Any]) -> str:
    """The config without what does not change the function. (P-1.10)"""
    kept = {key: value for key, value in config.items() if key == CLASS_NAME or key not in ABOUT}
    return json.dumps(kept, indent=1, sort_keys=True) + "\n"


def check_graph(path: Path, shape: DenoiserShape, weights: dict[str, Stored]) -> None:
    """The graph gives the noise that torch computes of the same numbers. Raises ArtefactError."""
    import torch

    from base_model.denoisers.torch_model import torch_denoiser

    rng = np.random.default_rng(0)
    size = (3, shape.channels, shape.side, shape.side)
    inputs = {
        IMAGES: rng.standard_normal(size, np.float32),
        STEPS: np.array([0, 500, 999], np.int64),
        CLASSES: np.array([0, shape.classes - 1, shape.classes], np.int64),
    }
    with torch.no_grad():
        model = torch_denoiser(shape, weights)
        expected = model(*(torch.from_numpy(value) for value in inputs.values())).numpy()
    (noise,) = open_graph(path).run([NOISE], inputs)
    verify_near(NOISE, expected, noise, BOUND)
