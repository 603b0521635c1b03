"""The source of a base of images: a Hugging Face model, from a folder, a package or the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import transformers
from torch import Tensor
from transformers import PretrainedConfig

from base_model.checkpoint import read_checkpoint
from base_model.headed_source import (
    check_plain,
    check_stated,
    config_of,
    fitted,
    labels_of,
    own_head,
    shapes_of,
)
from base_model.images.classifier import ImageClassifier
from base_model.images.families import ImageFamily, image_family_of, sides
from base_model.images.preprocessing import read_preprocessing
from base_model.places import CONFIG, Place, check_texts, locate
from base_model.source_files import read_object
from protocol.errors import ArtefactError, PlanError
from protocol.image_manifest import ImageManifest, Pixels

transformers.utils.logging.disable_progress_bar()  # the commands draw their own
# What shapes do not show, so that a default would go unnoticed.
STATED = (
    *(("hidden_size",), ("num_hidden_layers",), ("num_attention_heads",)),
    ("num_channels",),
)
SIZES = (("image_size",), ("patch_size",))  # numbers, or pairs
# Names in checkpoints to those of the model; transformers 5 still writes the old ones.
RENAMED = (
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.attention\.(query|key|value)\.", lambda match: f".attention.{match[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)  # fmt: skip
HEAD = ("classifier.weight", "classifier.bias")
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

    MANIFEST = ImageManifest

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`MediaSource`."""
        return self.pixels.shape

    def own_fields(self) -> dict[str, Any]:
        """See :class:`MediaSource`."""
        return {
            "family": self.family.model_type,
            "pooling": "cls",
            "pixels": self.pixels,
            "max_positions": self.family.positions(self.config),
        }


def load_images(source: str, seconds: int) -> ImageSource:
    """Load encoder, head and preprocessing. Raises ArtefactError or MachineError for what is no base.

    And PlanError for ``seconds``, which an image has not.
    """
    if seconds:
        raise PlanError("--seconds is for bases of sounds", "leave it out")
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
    has_head, reason = own_head(place.name, config, family.own, outside, HEAD)
    tensors = {f"{family.prefix}.{name}": value for name, value in encoder.items()}
    if has_head:
        tensors |= {name: outside[name] for name in HEAD}
    labels = None
    if has_head:
        labels = labels_of(place.name, config, tensors["classifier.weight"])
    count = len(labels) if labels else 2
    shapes = shapes_of(place.name, lambda: ImageClassifier(config, labels=count))
    if not has_head:
        shapes = {name: s for name, s in shapes.items() if not name.startswith("classifier.")}
    return ImageSource(
        name=source,
        config=config,
        family=family,
        tensors=fitted(place.name, shapes, tensors),
        labels=labels,
        pixels=pixels,
        reasons=(reason,),
    )


def _config(place: Place) -> tuple[PretrainedConfig, ImageFamily]:
    path = place.model / CONFIG
    document = read_object(path)
    family = image_family_of(str(document.get("model_type")), source=place.name)
    check_stated(place.name, document, STATED)
    check_stated(place.name, document, SIZES, kinds=(int, list))
    check_plain(place.name, document)
    config = config_of(path, document)
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
