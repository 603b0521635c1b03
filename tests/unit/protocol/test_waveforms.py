"""Samples as every party hears them: as transformers' own, of a bounded length, with what is a sound's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import Wav2Vec2FeatureExtractor

from client.batches import micro_batches
from client.examples import media_rows
from protocol import waveform as samples_of
from protocol.audio_manifest import AudioManifest
from protocol.documents import OddError, value_as
from protocol.errors import DataError, MachineError
from protocol.manifests import OF_MEDIA, parse_any_manifest, uncovered
from protocol.media_manifest import kind_in
from protocol.rows import sounds
from protocol.rows.media import codec_of, read_file, read_inputs
from protocol.rows.sounds import WaveformCodec
from protocol.waveform import waveform
from protocol.waveform_manifest import Waveform, WaveformManifest
from tests.sound_models import RATE, wav
from tests.unit.audit.small_bases import small_media

SHORT: dict[str, Any] = {
    **{"kind": "wav2vec2-samples", "rate": 1000, "seconds": 1},
    **{"normalised": True, "masked": True},
}


def asked(**others: Any) -> Waveform:
    return Waveform(**(SHORT | others))


def by_transformers(samples: npt.NDArray[np.int16], as_asked: Waveform) -> Any:
    extractor = Wav2Vec2FeatureExtractor(
        sampling_rate=as_asked.rate, do_normalize=as_asked.normalised
    )
    return extractor(
        samples.astype(np.float32) / 32768,
        sampling_rate=as_asked.rate,
        padding="max_length",
        max_length=as_asked.samples,
        truncation=True,
        return_attention_mask=True,
        return_tensors="np",
    )


@given(
    samples=arrays(np.int16, st.integers(1, 1500), elements=st.integers(-(2**15), 2**15 - 1)),
    normalised=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_samples_are_transformers(samples: npt.NDArray[np.int16], normalised: bool) -> None:
    """Of any sound, shorter and longer than what is heard, within what float32 rounds of the largest."""
    codec = WaveformCodec(asked(normalised=normalised))
    expected = by_transformers(samples, codec.asked)
    feeds = read_inputs([wav(samples, rate=1000)], codec)
    largest = max(1.0, float(np.abs(expected["input_values"]).max()))
    assert np.abs(feeds["input_values"] - expected["input_values"]).max() <= 1e-4 * largest
    assert np.array_equal(feeds["attention_mask"], expected["attention_mask"])
    assert feeds["attention_mask"].dtype == np.int64
    assert not feeds["input_values"][feeds["attention_mask"] == 0].any()


@given(samples=arrays(np.int16, st.integers(2, 1000), elements=st.integers(-(2**14), 2**14 - 1)))
@settings(max_examples=40, deadline=None)
def test_how_loud_a_sound_is_says_nothing(samples: npt.NDArray[np.int16]) -> None:
    """Nor where its middle lies: but for what is added to the variance, which is little of a sound."""
    if samples.std() < 300:
        return
    plain = waveform(samples, asked())
    # Twice as loud, the least variance of 1e-7 is a quarter of what it was beside the sound's own, at least (300 / 2^15)^2.
    share = 0.5 * 0.75 * 1e-7 / (300 / 2**15) ** 2
    assert np.abs(waveform(samples + np.int16(2**14), asked()) - plain).max() <= 1e-5
    assert np.abs(waveform(-samples, asked()) + plain).max() <= 1e-5
    assert (
        np.abs(waveform(2 * samples, asked()) - plain).max()
        <= 1.01 * share * np.abs(plain).max() + 1e-5
    )
    assert abs(float(plain[: len(samples)].mean())) <= 1e-5


def test_silence_is_a_sound() -> None:
    codec = WaveformCodec(asked())
    for silence in (
        codec.example(),
        codec.values(wav(np.zeros(1, np.int16), rate=1000), place="x"),
    ):
        feeds = codec.inputs(silence[None])
        assert not feeds["input_values"].any()
        assert feeds["attention_mask"].sum() == 1


def test_what_is_kept_has_the_length_where_the_graph_is_told() -> None:
    """A sound that ends in zeros is not cut."""
    ended = wav(np.array([7, 0, 0], np.int16), rate=1000)
    kept = WaveformCodec(asked(normalised=False)).values(ended, place="x")
    assert (kept.shape, kept[-1], kept.dtype) == ((1001,), 3.0, np.float32)
    plain = WaveformCodec(asked(normalised=False, masked=False))
    assert plain.values(ended, place="x").shape == plain.shape == (1000,)
    assert list(plain.inputs(plain.example()[None])) == ["input_values"]


def test_the_longest_sound_has_an_exact_length() -> None:
    """(P-1.16) What stands behind samples is a float32."""
    longest = Waveform(**(SHORT | {"rate": 17_476, "seconds": 60}))
    assert not longest.odd()
    assert longest.samples < 2**24
    assert float(np.float32(longest.samples)) == longest.samples


def test_long_sounds_are_computed_a_few_at_a_time() -> None:
    """Before there are positions there are frames of every few samples: memory goes by these, at clients too."""
    base = small_media("audio-classification", samples=True)
    assert isinstance(base, WaveformManifest)
    few = {}
    for seconds in (1, 2, 4, 16, 60):
        heard = base.waveform.model_copy(update={"seconds": seconds, "rate": 16_384})
        long = base.model_copy(update={"waveform": heard, "max_positions": 50 * seconds})
        few[seconds] = long.together(32)
        rows = media_rows(long, np.zeros((9, 4), np.float32), np.zeros(9, np.int64))
        assert rows.together == long.together(64)
        sizes = [
            len(each) for each in micro_batches(rows.lengths, np.arange(9), most=10**6, rows=4)
        ]
        assert sizes == [4, 4, 1]
    assert few == {1: 32, 2: 16, 4: 8, 16: 2, 60: 1}
    assert base.model_copy(update={"max_positions": 8193}).odd() == (
        "more than 8192 positions are made of a sound"
    )


@pytest.mark.parametrize(
    "odd",
    [
        {"kind": "whisper-log-mel"},
        {"rate": 999},
        {"rate": 192_001},
        {"seconds": 0},
        {"seconds": 61},
        {"seconds": 1.0},
        {"normalised": 1},
        {"masked": None},
        {"window": 400},
    ],
    ids=str,
)
def test_settings_out_of_bounds_are_refused(odd: dict[str, Any]) -> None:
    with pytest.raises(OddError, match=next(iter(odd))):
        value_as(Waveform, SHORT | odd)


def test_a_manifest_is_of_the_kind_that_it_says() -> None:
    """Bases that hear features and samples have one task; what becomes of a sound tells them apart."""
    features, heard = (small_media("audio-classification", samples=each) for each in (False, True))
    assert type(parse_any_manifest(features.to_json(), source="m")) is AudioManifest
    assert type(parse_any_manifest(heard.to_json(), source="m")) is WaveformManifest
    assert features.fingerprint != heard.fingerprint
    assert isinstance(codec_of(heard), WaveformCodec)
    assert not {"waveform", "log_mel"} & {*uncovered(heard), *uncovered(features)}
    assert kind_in('{"task": "audio-classification"}', OF_MEDIA) is AudioManifest
    assert kind_in('{"task": "causal-lm", "waveform": 1}', OF_MEDIA) is None


def test_a_sound_that_does_not_fit_memory_is_this_machines_lack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(*_arguments: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(sounds, "waveform", none)
    with pytest.raises(MachineError, match="x: not enough memory for its sound"):
        read_file(wav(np.zeros(9, np.int16), rate=1000), WaveformCodec(asked()), place="x")
    assert samples_of.waveform is waveform


def test_a_file_of_another_rate_is_refused() -> None:
    with pytest.raises(DataError, match="16000 samples a second, and the base hears 1000"):
        read_file(wav(np.zeros(9, np.int16), rate=RATE), WaveformCodec(asked()), place="x")
