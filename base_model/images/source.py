"""The source of a base of images: a Hugging Face model, from a folder, a package or the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from base_model.checkpoint import as_float, read_checkpoint
from base_model.images.classifier import ImageClassifier
from base_model.images.families import ImageFamily, image_family_of, sides
from base_model.images.preprocessing import read_preprocessing
from base_model.places import CONFIG, Place, check_texts, locate
from base_model.source_files import check_classes, first_line, read_object
from protocol.errors import ArtefactError
from protocol.image_manifest import Pixels

transformers.utils.logging.disable_progress_bar()  # the commands draw their own
# What shapes do not show, so that a default would go unnoticed.
STATED = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("image_size", "patch_size", "num_channels"),
)
# Names in checkpoints to those of the model; transformers 5 still writes the old ones.
RENAMED = (
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.attention\.(query|key|value)\.", lambda found: f".attention.{found[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)  # fmt: skip
TOPS = ("embeddings.", "encoder.", "layers.", "layernorm.", "pooler.")
UNUSED = ("pooler.", "embeddings.mask_token")  # of the encoder, for what no head here reads


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """A loaded source, as :class:`base_model.source.Source`; ``pixels``: what becomes of an image."""

    name: str
    config: PretrainedConfig
    family: ImageFamily
    tensors: dict[str, Tensor]
    labels: list[str] | None
    pixels: Pixels
    reasons: tuple[str, ...]


def load_images(source: str) -> ImageSource:
    """Load encoder, head and preprocessing. Raises ArtefactError or MachineError for what is no base."""
    place = locate(source)
    config, family = _config(place)
    check_texts(place)
    pixels = read_preprocessing(
        place.model,
        family=family.model_type,
        channels=config.num_channels,
        size=sides(config.image_size),
    )
    encoder, outside = _apart(read_checkpoint(place.model), family)
    has_head, reason = _has_head(place.name, config, family, outside)
    tensors = {f"{family.prefix}.{name}": value for name, value in encoder.items()}
    if has_head:
        tensors |= {name: outside[name] for name in ("classifier.weight", "classifier.bias")}
    labels = _labels(place.name, config, tensors) if has_head else None
    return ImageSource(
        name=source,
        config=config,
        family=family,
        tensors=_checked(place.name, config, tensors, has_head),
        labels=labels,
        pixels=pixels,
        reasons=(reason,),
    )


def sorts_images(source: str) -> bool:
    """Whether a folder's ``config.json`` is of a model that reads images; False where it cannot be read."""
    try:
        document = read_object(Path(source).expanduser() / CONFIG)
        image_family_of(str(document.get("model_type")), source=source)
    except ArtefactError:
        return False
    return True


def _config(place: Place) -> tuple[PretrainedConfig, ImageFamily]:
    path = place.model / CONFIG
    document = read_object(path)
    family = image_family_of(str(document.get("model_type")), source=place.name)
    _check_document(path, document)
    try:
        config = AutoConfig.for_model(**document)
    except Exception as error:  # its checks raise types of their own
        raise ArtefactError(
            f"{path}: transformers does not take it: {first_line(error)}", "correct it"
        ) from None
    try:
        image, patch = sides(config.image_size), sides(config.patch_size)
    except (ValueError, TypeError):
        raise ArtefactError(f"{path}: its sizes are no numbers of pixels", "correct it") from None
    if any(side % of for side, of in zip(image, patch, strict=True)):
        raise ArtefactError(
            f"{path}: images of {image[0]} by {image[1]} are not whole patches", "correct it"
        )
    if config.num_channels not in (1, 3):
        raise ArtefactError(
            f"{path}: images of {config.num_channels} channels are not read", "use one with 1 or 3"
        )
    return config, family


def _check_document(path: Path, document: dict[str, Any]) -> None:
    """What would be guessed, or asked for, is refused. Raises ArtefactError."""
    for name in STATED:
        if name not in document:
            raise ArtefactError(
                f"{path}: it does not say `{name}`, which would be guessed",
                "take the config.json that belongs to the checkpoint",
            )
    check_classes(str(path), document)
    if document.get("quantization_config") or document.get("compression_config"):
        raise ArtefactError(
            f"{path}: the checkpoint is quantised already",
            "name the model as it was before; fedge quantises by itself",
        )
    if document.get("auto_map"):
        raise ArtefactError(
            f"{path}: it needs code of its own (`auto_map`)", "use a model that does not"
        )


def _apart(
    tensors: dict[str, Tensor], family: ImageFamily
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The encoder's tensors by their names in the model, and those outside it by theirs."""
    prefix = f"{family.prefix}."
    inside = {name for name in tensors if name.startswith(prefix)}
    inside = inside or {name for name in tensors if name.startswith(TOPS)}
    named = {_modern(name.removeprefix(prefix)): tensors[name] for name in inside}
    kept = {name: value for name, value in named.items() if not name.startswith(UNUSED)}
    return kept, {name: value for name, value in tensors.items() if name not in inside}


def _modern(name: str) -> str:
    for old, new in RENAMED:
        name = re.sub(old, new, name)
    return name


def _has_head(
    name: str, config: PretrainedConfig, family: ImageFamily, outside: dict[str, Tensor]
) -> tuple[bool, str]:
    """Whether the source's head means here what it means there, and a sentence for the publisher."""
    kinds = list(config.architectures or ())
    if kinds[:1] == [family.own]:
        for tensor in ("classifier.weight", "classifier.bias"):
            if tensor not in outside:
                raise ArtefactError(
                    f"{name}: it is a {family.own}, and the checkpoint lacks {tensor}",
                    "fetch a complete checkpoint, or pass the encoder alone",
                )
        return True, "the source's own head and the names of its labels are kept"
    if outside:
        kind = kinds[0] if kinds else "a model of unknown kind"
        return False, f"left out: {min(outside)} and what belongs to it ({kind})"
    return False, "the source has no head: adapters bring one"


def _labels(name: str, config: PretrainedConfig, tensors: dict[str, Tensor]) -> list[str]:
    """Names of the head's labels in the order of the logits. Raises ArtefactError."""
    count, names = len(tensors["classifier.weight"]), dict(config.id2label or {})
    if sorted(names) != list(range(count)):
        raise ArtefactError(
            f"{name}: the head has {count} labels, {CONFIG} names {len(names)}",
            "take the config.json that belongs to the checkpoint",
        )
    return [str(names[index]) for index in range(count)]


def _checked(
    name: str, config: PretrainedConfig, tensors: dict[str, Tensor], has_head: bool
) -> dict[str, Tensor]:
    """The model's parameters, each there, of its shape, in float32. Raises ArtefactError."""
    try:
        with torch.device("meta"):
            labels = len(tensors["classifier.weight"]) if has_head else 2
            model = ImageClassifier(config, labels=labels)
    except Exception as error:  # whatever a config can make a constructor do
        raise ArtefactError(
            f"{name}: its {CONFIG} gives no model: {first_line(error)}", "correct it"
        ) from None
    shapes = {key: tuple(value.shape) for key, value in model.named_parameters()}
    if not has_head:
        shapes = {key: s for key, s in shapes.items() if not key.startswith("classifier.")}
    remedy = "take the config.json that belongs to the checkpoint"
    if absent := sorted(shapes.keys() - tensors.keys()):
        raise ArtefactError(
            f"{name}: the checkpoint lacks {absent[0]} ({len(absent)} tensors in all)",
            "fetch a complete checkpoint",
        )
    if odd := sorted(tensors.keys() - shapes.keys()):
        raise ArtefactError(
            f"{name}: the checkpoint has {odd[0]}, for which its {CONFIG} has no place", remedy
        )
    for key, shape in shapes.items():
        if tuple(tensors[key].shape) != shape:
            there = tuple(tensors[key].shape)
            raise ArtefactError(f"{name}: {key} is {there}, and by {CONFIG} {shape}", remedy)
    return {key: as_float(key, tensors[key], source=name) for key in shapes}
