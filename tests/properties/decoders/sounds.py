"""Decoders, by house. Sounds, and what a source says becomes of them."""

from __future__ import annotations

import numpy as np

from base_model.sounds.preprocessing import read_preprocessing
from base_model.sounds.waveform_preprocessing import read_waveform
from protocol.audio_manifest import LogMel
from protocol.rows.media import read_file
from protocol.rows.sounds import SoundCodec, read_wav
from protocol.waveform_manifest import Waveform
from tests.properties.decoders.rows import Decoder, json_line, of_file
from tests.properties.decoders.world import World
from tests.sound_models import BANDS, HOP, RATE, preprocessing, wav
from tests.waveform_models import waveform_preprocessing

SOUNDS_OF_TESTS = LogMel(
    kind="whisper-log-mel",
    rate=1000,
    seconds=1,
    window=16,
    hop=100,
    bands=4,
    frames=10,
    highest=8000,
)

SAMPLES_OF_TESTS = Waveform(
    kind="wav2vec2-samples", rate=1000, seconds=1, normalised=True, masked=True
)


def sounds(world: World) -> dict[str, Decoder]:
    whole = wav(np.arange(8, dtype=np.int16), rate=1000)
    return {
        "protocol.rows.sounds:read_wav": Decoder(
            read=lambda data: read_wav(data, rate=1000, place="x"), seeds=(whole,)
        ),
        "protocol.rows.media:read_file": Decoder(
            read=lambda data: read_file(data, SoundCodec(SOUNDS_OF_TESTS), place="x"),
            seeds=(whole,),
        ),
        "base_model.sounds.preprocessing:read_preprocessing": Decoder(
            read=of_file(
                world.folder / "preprocessor_config.json",
                lambda path: read_preprocessing(path.parent, bands=BANDS, frames=RATE // HOP),
            ),
            seeds=(json_line(preprocessing()),),
        ),
        "base_model.sounds.waveform_preprocessing:read_waveform": Decoder(
            read=of_file(
                world.folder / "preprocessor_config.json",
                lambda path: read_waveform(path.parent, seconds=1),
            ),
            seeds=(json_line(waveform_preprocessing()),),
        ),
    }
