"""The source of a base of sounds: a Hugging Face model, from a folder, a package or the Hub."""

from __future__ import annotations

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
from base_model.media_read import STRIDES
from base_model.places import CONFIG, Place, check_texts, locate
from base_model.sounds.classifier import SoundClassifier
from base_model.sounds.families import SoundFamily, sound_family_of
from base_model.sounds.preprocessing import read_preprocessing
from base_model.sounds.waveform_source import WaveformSource, load_waveform
from base_model.source_files import read_object
from protocol.audio_manifest import AudioManifest, LogMel
from protocol.errors import ArtefactError, PlanError

transformers.utils.logging.disable_progress_bar()  # the commands draw their own
# What shapes do not show, so that a default would go unnoticed.
STATED = (
    *(("d_model",), ("encoder_layers",), ("encoder_attention_heads",), ("encoder_ffn_dim",)),
    *(("num_mel_bins",), ("max_source_positions",)),
)
PROJECTOR = ("projector.weight", "projector.bias")
HEAD = ("classifier.weight", "classifier.bias")


@dataclass(frozen=True, kw_only=True)
class SoundSource:
    """A loaded source, as :class:`base_model.source.Source`; ``log_mel``: what becomes of a sound.

    ``projected``: whether its head has a layer before the last, which is kept.
    """

    name: str
    config: PretrainedConfig
    family: SoundFamily
    tensors: dict[str, Tensor]
    labels: list[str] | None
    projected: bool
    log_mel: LogMel
    reasons: tuple[str, ...]

    MANIFEST = AudioManifest

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`MediaSource`."""
        return self.log_mel.shape

    def own_fields(self) -> dict[str, Any]:
        """See :class:`MediaSource`."""
        return {
            "family": self.family.model_type,
            "pooling": "projected" if self.projected else "mean",
            "log_mel": self.log_mel,
            "max_positions": self.config.max_source_positions,
        }


def load_sounds(source: str, seconds: int) -> SoundSource | WaveformSource:
    """Load encoder, head and preprocessing; ``seconds``: of a sound that hears samples, else 0.

    Raises ArtefactError or MachineError for what is no base, PlanError for seconds where they are said.
    """
    place = locate(source)
    document = read_object(place.model / CONFIG)
    family = sound_family_of(str(document.get("model_type")), source=place.name)
    if family.samples:
        return load_waveform(place, family, seconds)
    if seconds:
        raise PlanError(
            f"{place.name}: its positions say how long a sound a model of {family.model_type} hears",
            "leave --seconds out",
        )
    return _load_features(place, family)


def _load_features(place: Place, family: SoundFamily) -> SoundSource:
    config = _config(place)
    check_texts(place)
    log_mel = read_preprocessing(
        place.model, bands=config.num_mel_bins, frames=STRIDES * config.max_source_positions
    )
    encoder, outside = _apart(read_checkpoint(place.model), family)
    has_head, reason = own_head(place.name, config, family.own, outside, (*PROJECTOR, *HEAD))
    tensors, labels = dict(encoder), None
    if has_head:
        tensors |= {name: outside[name] for name in (*PROJECTOR, *HEAD)}
        labels = labels_of(place.name, config, tensors["classifier.weight"])
    count = len(labels) if labels else 2
    shapes = shapes_of(
        place.name, lambda: SoundClassifier(config, labels=count, projected=has_head)
    )
    if not has_head:
        shapes = {name: s for name, s in shapes.items() if name not in HEAD}
    return SoundSource(
        name=place.name,
        config=config,
        family=family,
        tensors=fitted(place.name, shapes, tensors),
        labels=labels,
        projected=has_head,
        log_mel=log_mel,
        reasons=(reason,),
    )


def _config(place: Place) -> PretrainedConfig:
    path = place.model / CONFIG
    document = read_object(path)
    check_stated(place.name, document, STATED)
    check_stated(place.name, document, (("activation_function",),), kinds=(str,))
    check_plain(place.name, document)
    config = config_of(path, document)
    if config.use_weighted_layer_sum:
        raise ArtefactError(
            f"{path}: its head reads all layers (`use_weighted_layer_sum`), and one that reads the last is "
            "needed",
            "use a model without it, or pass the encoder alone",
        )
    return config


def _apart(
    tensors: dict[str, Tensor], family: SoundFamily
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The encoder's tensors by their names in the model, and those outside it by theirs."""
    prefix = f"{family.prefix}."
    named = {name: name.removeprefix(family.around) for name in tensors}
    inside = {name for name, plain in named.items() if plain.startswith(prefix)}
    encoder = {named[name]: tensors[name] for name in inside}
    return encoder, {name: value for name, value in tensors.items() if name not in inside}
