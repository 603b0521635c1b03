"""Build a base of sounds, once, at the publisher. (P-1.16)"""

from __future__ import annotations

from functools import partial

from base_model.media_build import MediaBuild, build_media
from base_model.sounds.classifier import SoundClassifier
from base_model.sounds.export import exported_sounds
from base_model.sounds.source import SoundSource, load_sounds
from protocol.audio_manifest import AudioManifest


def _model(source: SoundSource, labels: int) -> SoundClassifier:
    """Eager attention exports to plain matrix products."""
    return SoundClassifier(
        source.config, labels=labels, projected=source.projected, attention="eager"
    )


KIND = MediaBuild(manifest=AudioManifest, load=load_sounds, model=_model, export=exported_sounds)
build_sounds = partial(build_media, KIND)
