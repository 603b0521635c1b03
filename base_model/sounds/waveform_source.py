"""The source of a base that hears samples: a Hugging Face model, from a folder, a package or the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from base_model.checkpoint import as_float, read_checkpoint
from base_model.headed_source import (
    COMPLETE,
    check_plain,
    check_stated,
    config_of,
    fitted,
    labels_of,
    own_head,
    shapes_of,
)
from base_model.places import CONFIG, Place, check_texts
from base_model.sounds.families import SoundFamily
from base_model.sounds.frames import Frames, frames_of
from base_model.sounds.waveform_classifier import WaveformClassifier
from base_model.sounds.waveform_preprocessing import read_waveform
from base_model.source_files import read_object
from protocol.errors import ArtefactError, PlanError
from protocol.waveform_manifest import MOST_POSITIONS, Waveform, WaveformManifest

# What shapes do not show, so that a default would go unnoticed.
NUMBERS = (("hidden_size",), ("num_hidden_layers",), ("num_attention_heads",))
LISTS = (("conv_kernel",), ("conv_stride",))
WORDS = (("feat_extract_norm",), ("feat_extract_activation",), ("hidden_act",))
SWITCHES = (("do_stable_layer_norm",),)
REFUSED = {
    "use_weighted_layer_sum": "its head reads all layers, and one that reads the last is needed",
    "add_adapter": "convolutions stand behind its layers",
    "adapter_attn_dim": "its layers have adapters of their own",
    "conv_pos_batch_norm": "its positions have a norm over the sounds that are trained together",
}
UNTRAINED = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "apply_spec_augment": False}
MASKED_PLACE = "masked_spec_embed"  # what pre-training puts in the place of a position
TOPS = ("feature_extractor.", "feature_projection.", "encoder.", MASKED_PLACE)
POSITIONS = "encoder.pos_conv_embed.conv."
# (length, direction) of a kernel with a norm, by names of transformers of old and of now
NORMED = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
PROJECTOR = ("projector.weight", "projector.bias")
HEAD = ("classifier.weight", "classifier.bias")


@dataclass(frozen=True, kw_only=True)
class WaveformSource:
    """A loaded source, as :class:`base_model.source.Source`; ``waveform``: what becomes of a sound.

    ``projected``: whether its head has a layer before the last, which is kept; ``frames``: what its
    convolutions make of samples.
    """

    name: str
    config: PretrainedConfig
    family: SoundFamily
    tensors: dict[str, Tensor]
    labels: list[str] | None
    projected: bool
    waveform: Waveform
    frames: Frames
    reasons: tuple[str, ...]

    MANIFEST = WaveformManifest

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`MediaSource`."""
        return (self.waveform.samples,)

    def own_fields(self) -> dict[str, Any]:
        """See :class:`MediaSource`."""
        return {
            "family": self.family.model_type,
            "pooling": "projected" if self.projected else "mean",
            "waveform": self.waveform,
            "max_positions": self.frames.of(self.waveform.samples),
        }


def load_waveform(place: Place, family: SoundFamily, seconds: int) -> WaveformSource:
    """Load encoder, head and preprocessing. Raises PlanError without ``seconds``, ArtefactError."""
    if not seconds:
        raise PlanError(
            f"{place.name}: a model of {family.model_type} does not say how long a sound it hears",
            "pass --seconds: as many as the sounds of your rows have, of which longer ones are cut",
        )
    config, frames = _config(place)
    check_texts(place)
    waveform = read_waveform(place.model, seconds=seconds)
    if not 1 <= (positions := frames.of(waveform.samples)) <= MOST_POSITIONS:
        raise ArtefactError(
            f"{place.name}: it makes {max(0, positions)} positions of {seconds} seconds, each of "
            f"{frames.least} samples, and 1 to {MOST_POSITIONS} are asked for",
            f"pass {'more' if positions < 1 else 'fewer'} --seconds",
        )
    encoder, outside = _apart(place.name, read_checkpoint(place.model), family)
    has_head, reason = own_head(place.name, config, family.own, outside, (*PROJECTOR, *HEAD))
    tensors, labels = dict(encoder), None
    if has_head:
        tensors |= {name: outside[name] for name in (*PROJECTOR, *HEAD)}
        labels = labels_of(place.name, config, tensors["classifier.weight"])
    count = len(labels) if labels else 2
    shapes = shapes_of(
        place.name,
        lambda: WaveformClassifier(config, labels=count, projected=has_head, masked=False),
    )
    if not has_head:
        shapes = {name: s for name, s in shapes.items() if name not in HEAD}
    return WaveformSource(
        name=place.name,
        config=config,
        family=family,
        tensors=fitted(place.name, shapes, tensors),
        labels=labels,
        projected=has_head,
        waveform=waveform,
        frames=frames,
        reasons=(reason,),
    )


def _config(place: Place) -> tuple[PretrainedConfig, Frames]:
    """The model's, without what is done in pre-training alone."""
    path = place.model / CONFIG
    document = read_object(path)
    check_stated(place.name, document, NUMBERS)
    check_stated(place.name, document, LISTS, kinds=(list,))
    check_stated(place.name, document, WORDS, kinds=(str,))
    check_stated(place.name, document, SWITCHES, kinds=(bool,))
    check_plain(place.name, document)
    for name, reason in REFUSED.items():
        if document.get(name):
            raise ArtefactError(f"{path}: {reason} (`{name}`)", "use a model without it")
    try:
        frames = frames_of(document)
    except ValueError as error:
        raise ArtefactError(f"{path}: {error}", "correct it") from None
    return config_of(path, document | UNTRAINED), frames


def _apart(
    source: str, tensors: dict[str, Tensor], family: SoundFamily
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The encoder's tensors by their names in the model, and those outside it by theirs."""
    prefix = f"{family.prefix}."
    inside = {name for name in tensors if name.startswith(prefix)}
    inside = inside or {name for name in tensors if name.startswith(TOPS)}
    encoder = {f"{prefix}{name.removeprefix(prefix)}": tensors[name] for name in inside}
    encoder.pop(f"{prefix}{MASKED_PLACE}", None)
    return _without_norm(source, encoder, f"{prefix}{POSITIONS}"), {
        name: value for name, value in tensors.items() if name not in inside
    }


def _without_norm(source: str, encoder: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    """The kernel of positions as one tensor, where its length by tap and its direction are two."""
    for names in NORMED:
        pair = [encoder.get(path + name) for name in names]
        if pair == [None, None]:
            continue
        if any(value is None for value in pair):
            raise ArtefactError(f"{source}: the checkpoint has half of {path}weight", COMPLETE)
        length, direction = (
            as_float(path + name, encoder[path + name], source=source) for name in names
        )
        if direction.ndim != 3 or tuple(length.shape) != (1, 1, direction.shape[2]):
            raise ArtefactError(f"{source}: {path}weight has a norm of another shape", COMPLETE)
        kept = {name: v for name, v in encoder.items() if name not in {path + n for n in names}}
        norm = direction.norm(dim=(0, 1), keepdim=True)
        return kept | {f"{path}weight": direction * (length / norm)}
    return encoder
