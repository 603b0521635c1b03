"""What a source's ``preprocessor_config.json`` says becomes of an image. (P-1.15)

What it leaves out would be guessed, as transformers does by the class that opens it, and what it does beyond
this would be left out: both are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from base_model.images.families import sides
from base_model.source_files import read_object
from protocol.documents import OddError, value_as
from protocol.errors import ArtefactError
from protocol.image_manifest import Pixels

FILE = "preprocessor_config.json"
REMEDY = "take the file that belongs to the checkpoint, with every step said"
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers
STEPS = ("do_resize", "do_rescale", "do_normalize")  # that every image goes through
# What says who wrote the file, where it runs, or what comes out of steps that are not taken.
WITHOUT_EFFECT = {
    *("image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys"),
    *("data_format", "input_data_format", "return_tensors", "device", "disable_grouping"),
    *("default_to_square", "do_convert_rgb", "do_center_crop", "do_pad", "do_reduce_labels"),
    *("image_seq_length", "model_input_names", "_processor_class"),
}
READ = {"size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std", *STEPS}


def read_preprocessing(folder: Path, *, channels: int, size: tuple[int, int]) -> Pixels:
    """Of a source whose model reads ``channels`` of (height, width) ``size``. Raises ArtefactError."""
    path = folder / FILE
    document = read_object(path)
    try:
        return _pixels(document, channels, size)
    except (ValueError, TypeError, KeyError) as error:
        reason = f"it does not say {error}" if isinstance(error, KeyError) else str(error)
        raise ArtefactError(f"{path}: {reason}", REMEDY) from None


def _pixels(document: dict[str, Any], channels: int, size: tuple[int, int]) -> Pixels:
    if unknown := sorted(document.keys() - READ - WITHOUT_EFFECT):
        raise ValueError(f"`{unknown[0]}` is not known here, and may change what a model sees")
    for step in STEPS:
        if document.get(step, True) is not True:
            raise ValueError(f"`{step}` is {document[step]!r}; it is always done here")
    for step in ("do_pad", "do_reduce_labels"):
        if document.get(step):
            raise ValueError(f"`{step}` is not done here")
    if document.get("do_convert_rgb") and channels == 1:
        raise ValueError("`do_convert_rgb` makes three channels, and the model reads one")
    cropped = bool(document.get("do_center_crop", "crop_size" in document))
    kept = _side("crop_size" if cropped else "size", document)
    if kept != size:
        raise ValueError(f"images become {_by(kept)}, and the model reads {_by(size)}")
    fields = {
        "channels": channels,
        "resized": _side("size", document),
        "resampling": RESAMPLING[document["resample"]] if _is_kind(document) else "",
        "height": size[0],
        "width": size[1],
        "scale": float(document.get("rescale_factor", 1 / 255)),
        "mean": _of_channels("image_mean", document, channels),
        "std": _of_channels("image_std", document, channels),
    }
    try:
        return value_as(Pixels, fields)
    except OddError as odd:
        raise ValueError(str(odd)) from None


def _is_kind(document: dict[str, Any]) -> bool:
    number = document["resample"]
    if type(number) is not int or not 0 <= number < len(RESAMPLING):
        raise ValueError(f"`resample` is {number!r}, no kind of resampling that is known")
    return True


def _side(name: str, document: dict[str, Any]) -> tuple[int, int]:
    """(height, width): of a number, a pair, or {height, width}; no size that hangs on the image."""
    value = document[name]
    if isinstance(value, dict):
        if value.keys() != {"height", "width"}:
            raise ValueError(f"`{name}` hangs on each image: {', '.join(sorted(value))}")
        value = [value["height"], value["width"]]
    try:
        return sides(value)
    except (ValueError, TypeError):
        raise ValueError(f"`{name}` is no size in pixels") from None


def _of_channels(name: str, document: dict[str, Any], channels: int) -> tuple[float, ...]:
    value = document[name]
    values = [value] * channels if isinstance(value, int | float) else list(value)
    if len(values) != channels:
        raise ValueError(f"`{name}` has {len(values)} numbers, the model reads {channels} channels")
    return tuple(float(number) for number in values)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} by {size[1]}"
