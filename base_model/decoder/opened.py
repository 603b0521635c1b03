"""A decoder's folder as what its graphs are built of: shape and stored tensors, read where they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from base_model.decoder.families import shape_of
from base_model.decoder.products import BLOCK, Stored
from base_model.decoder.shape import DecoderShape
from base_model.decoder.source import CodedWeight
from base_model.decoder.stored import StoredTensors
from base_model.source_files import read_object
from base_model.weights_file import DTYPES, WEIGHTS, places_of
from protocol.manifest import CONFIG


def mapped_decoder(folder: Path) -> tuple[DecoderShape, dict[str, Stored]]:
    """:func:`opened_decoder` of tensors that nobody has read yet: views of the file, not to be written."""
    shape, path = shape_of(read_object(folder / CONFIG)), folder / WEIGHTS
    data = np.memmap(path, np.uint8, "r")
    tensors = {
        name: data[place.offset : place.offset + place.length]
        .view(DTYPES[place.kind])
        .reshape(place.shape)
        for name, place in places_of(path).items()
    }
    return shape, stored_tensors(shape, tensors)


def opened_decoder(folder: Path) -> tuple[DecoderShape, dict[str, Stored]]:
    """The shape, and tensors by Hugging Face's names, of a verified base.

    Raises ArtefactError for a config that is not supported.
    """
    shape = shape_of(read_object(folder / CONFIG))
    return shape, opened_tensors(folder, shape)


def opened_tensors(folder: Path, shape: StoredTensors) -> dict[str, Stored]:
    """Tensors by Hugging Face's names of a verified base of that shape."""
    with safe_open(folder / WEIGHTS, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return stored_tensors(shape, tensors)


def stored_tensors(
    shape: StoredTensors, tensors: dict[str, npt.NDArray[np.generic]]
) -> dict[str, Stored]:
    """The inverse of :func:`base_model.decoder.stored.file_tensors`."""
    stored: dict[str, Stored] = {}
    for path, (rows, width) in shape.matrices().items():
        if f"{path}.qweight" not in tensors:
            stored[f"{path}.weight"] = tensors[f"{path}.weight"]  # type: ignore[assignment]
            continue
        blocks = -(-width // BLOCK)
        codes = np.asarray(tensors[f"{path}.qweight"], np.uint8).reshape(rows, blocks, -1)
        offsets = tensors.get(f"{path}.offsets")
        stored[f"{path}.weight"] = CodedWeight(
            bits=codes.shape[2] * 8 // BLOCK,
            codes=codes,
            scales=np.asarray(tensors[f"{path}.scales"], np.float32),
            offsets=None if offsets is None else np.asarray(offsets, np.float32),
        )
    for name in shape.vectors():
        stored[name] = np.asarray(tensors[name], np.float32)
    return stored
