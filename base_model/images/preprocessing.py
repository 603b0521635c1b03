"""What a source's ``preprocessor_config.json`` says becomes of an image. (P-1.15)

Numbers that it leaves out would be guessed, as transformers does by the class that opens it, and steps beyond
these would be left out: both are refused, and classes that do something else. Stretching, scaling and
normalising are done where it does not say so, as both classes do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from base_model.images.families import sides
from base_model.preprocessor_file import FILE, shown, verify_known
from base_model.source_files import read_object
from protocol.documents import OddError, value_as
from protocol.errors import ArtefactError
from protocol.image_manifest import Pixels

REMEDY = (
    "take the file that belongs to the checkpoint, of a ViTImageProcessor or DeiTImageProcessor"
)
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers
STEPS = ("do_resize", "do_rescale", "do_normalize")  # of every image; both classes' where unsaid
CLASS = ("image_processor_type", "feature_extractor_type")
KINDS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
UNCROPPED = {f"ViT{kind}" for kind in KINDS}  # they crop in some versions of transformers alone
CLASSES = UNCROPPED | {f"DeiT{kind}" for kind in KINDS}
# What says who wrote the file, where it runs, or what comes out of steps that are not taken.
WITHOUT_EFFECT = {
    *("processor_class", "_processor_class", "_valid_processor_keys", "image_seq_length"),
    *("data_format", "input_data_format", "return_tensors", "device", "disable_grouping"),
    "model_input_names",
}
READ = {
    *("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std"),
    *("default_to_square", "do_convert_rgb", "do_center_crop", "do_pad", "do_reduce_labels"),
    *(*CLASS, *STEPS),
}


def read_preprocessing(
    folder: Path, *, family: str, channels: int, size: tuple[int, int]
) -> Pixels:
    """Of a source whose model, of ``family``, reads ``channels`` of (height, width) ``size``.

    Raises ArtefactError.
    """
    path = folder / FILE
    document = read_object(path)
    try:
        return _pixels(document, family, channels, size)
    except (ValueError, KeyError) as error:
        reason = f"it does not say `{error.args[0]}`" if isinstance(error, KeyError) else str(error)
        raise ArtefactError(f"{path}: {reason}", REMEDY) from None


def _pixels(document: dict[str, Any], family: str, channels: int, size: tuple[int, int]) -> Pixels:
    cropped = _verify_steps(document, family, channels)
    resized = _side("size", document)
    kept = _side("crop_size", document) if cropped else resized
    if kept != size:
        raise ValueError(f"images become {_by(kept)}, and the model reads {_by(size)}")
    if resized[0] < size[0] or resized[1] < size[1]:
        raise ValueError(f"images of {_by(resized)} are padded to {_by(size)}; it is not done here")
    fields = {
        "channels": channels,
        "resized": resized,
        "resampling": _resampling(document),
        "height": size[0],
        "width": size[1],
        "scale": _number("rescale_factor", document.get("rescale_factor", 1 / 255)),
        "mean": _of_channels("image_mean", document, channels),
        "std": _of_channels("image_std", document, channels),
    }
    try:
        return value_as(Pixels, fields)
    except OddError as odd:
        raise ValueError(str(odd)) from None


def _verify_steps(document: dict[str, Any], family: str, channels: int) -> bool:
    """Whether the middle is cut out; every other step is the one here. Raises ValueError, KeyError."""
    verify_known(document, READ | WITHOUT_EFFECT)
    names = [document[key] for key in CLASS if document.get(key) is not None]
    for name in names:
        if not isinstance(name, str) or name not in CLASSES:
            raise ValueError(f"a processor {shown(name)} is not known here")
    for step in STEPS:
        if document.get(step, True) is not True:
            raise ValueError(f"`{step}` is {shown(document[step])}; it is always done here")
    for step in ("do_pad", "do_reduce_labels"):
        if document.get(step):
            raise ValueError(f"`{step}` is not done here")
    if document.get("do_convert_rgb") and channels == 1:
        raise ValueError("`do_convert_rgb` makes three channels, and the model reads one")
    number = not isinstance(document.get("size"), dict)
    if document.get("default_to_square", True) is not True and number:
        raise ValueError("`size` is one side, the other hangs on each image: `default_to_square`")
    # of what names no ImageProcessor transformers takes the one of the model's family
    own = family == "vit" or any("ImageProcessor" in name for name in names)
    return _crops(document, uncropped=own and UNCROPPED.issuperset(names))


def _crops(document: dict[str, Any], *, uncropped: bool) -> bool:
    if uncropped:
        if document.get("do_center_crop"):
            raise ValueError("`do_center_crop` is done by some versions of this processor alone")
        return False
    crops = document["do_center_crop"]
    if type(crops) is not bool:
        raise ValueError(f"`do_center_crop` is {shown(crops)}, neither true nor false")
    return crops


def _resampling(document: dict[str, Any]) -> str:
    number = document["resample"]
    if type(number) is not int or not 0 <= number < len(RESAMPLING):
        raise ValueError(f"`resample` is {shown(number)}, no kind of resampling that is known")
    return RESAMPLING[number]


def _side(name: str, document: dict[str, Any]) -> tuple[int, int]:
    """(height, width): of {height, width}, or a number; no size that hangs on the image.

    A pair is (width, height) in some versions of transformers, (height, width) in others.
    """
    value = document[name]
    if isinstance(value, dict) and value.keys() != {"height", "width"}:
        raise ValueError(f"`{name}` hangs on each image: {', '.join(sorted(value))}")
    pair = (value["height"], value["width"]) if isinstance(value, dict) else (value, value)
    if not all(type(side) is int for side in pair):
        raise ValueError(f"`{name}` is no size in pixels: a number, or height and width")
    try:
        return sides(pair)
    except ValueError:
        raise ValueError(f"`{name}` is no size in pixels") from None


def _of_channels(name: str, document: dict[str, Any], channels: int) -> tuple[float, ...]:
    value = document[name]
    values = value if isinstance(value, list) else [value] * channels
    if len(values) != channels:
        raise ValueError(f"`{name}` has {len(values)} numbers, the model reads {channels} channels")
    return tuple(_number(name, each) for each in values)


def _number(name: str, value: object) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"`{name}` is {shown(value)}, no number")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        raise ValueError(f"`{name}` is beyond all numbers") from None


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} by {size[1]}"
