"""Build a base of sounds, once, at the publisher. (P-1.16)"""

from __future__ import annotations

from functools import partial

import onnx

from base_model.media_build import MediaBuild, MediaModel, build_media
from base_model.sounds.classifier import SoundClassifier
from base_model.sounds.export import exported_sounds
from base_model.sounds.source import SoundSource, load_sounds
from base_model.sounds.waveform_classifier import WaveformClassifier
from base_model.sounds.waveform_export import exported_waveforms
from base_model.sounds.waveform_source import WaveformSource


def _model(source: SoundSource | WaveformSource, labels: int) -> MediaModel:
    """Eager attention exports to plain matrix products."""
    if isinstance(source, SoundSource):
        return SoundClassifier(
            source.config, labels=labels, projected=source.projected, attention="eager"
        )
    return WaveformClassifier(
        source.config,
        labels=labels,
        projected=source.projected,
        masked=source.waveform.masked,
        attention="eager",
    )


def _exported(model: MediaModel, shape: tuple[int, ...]) -> onnx.ModelProto:
    if isinstance(model, WaveformClassifier):
        return exported_waveforms(model, shape)
    assert isinstance(model, SoundClassifier)
    return exported_sounds(model, shape)


KIND = MediaBuild(load=load_sounds, model=_model, export=_exported)
build_sounds = partial(build_media, KIND)
