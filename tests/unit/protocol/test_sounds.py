"""Sounds as every party hears them: features as transformers' own, and refusals that tell nothing."""

from __future__ import annotations

import io
import struct
import warnings
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from protocol import log_mel as features
from protocol.audio_manifest import LogMel
from protocol.documents import OddError, value_as
from protocol.errors import DataError, MachineError
from protocol.log_mel import log_mel
from protocol.rows import media, sounds
from protocol.rows.media import read_file, read_inputs, read_media_paths
from protocol.rows.sounds import SUBFORMAT, SoundCodec, read_wav
from tests.sound_models import RATE, riff, tone, wav
from tests.unit.audit.small_bases import small_media

SHORT: dict[str, Any] = {
    **{"kind": "whisper-log-mel", "rate": RATE, "seconds": 1, "window": 400, "hop": 160},
    **{"bands": 80, "frames": 100, "highest": 8000},
}


def asked(**others: Any) -> LogMel:
    return LogMel(**(SHORT | others))


def by_transformers(samples: Any, as_asked: LogMel) -> Any:
    extractor = WhisperFeatureExtractor(
        feature_size=as_asked.bands,
        sampling_rate=as_asked.rate,
        hop_length=as_asked.hop,
        chunk_length=as_asked.seconds,
        n_fft=as_asked.window,
    )
    heard = samples.astype(np.float32) / 32768
    return extractor(heard, sampling_rate=as_asked.rate, return_tensors="np").input_features[0]


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"seconds": 6, "frames": 600},  # more frames than are computed at once
        {"rate": 8000, "window": 200, "hop": 80, "bands": 40},  # bands above all that there is
        {"bands": 128, "hop": 150, "frames": 106},  # 16,000 are no whole hops
    ],
    ids=str,
)
@pytest.mark.parametrize("seconds", [0.4, 1.0, 7.0])
def test_features_are_transformers_own(others: dict[str, Any], seconds: float) -> None:
    """Of what is shorter, as long and longer than what a base hears."""
    wanted = asked(**others)
    samples = tone(440.0, seconds=seconds, rate=wanted.rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bands that hear nothing
        expected = by_transformers(samples, wanted)
    found = log_mel(samples, wanted)
    assert (found.dtype, found.shape) == (np.float32, wanted.shape)
    assert np.abs(found - expected).max() <= 1e-4


@pytest.mark.parametrize(
    "samples",
    [np.zeros(9), np.full(RATE, 32767), np.full(RATE, -32768), np.arange(2) * 20_000],
    ids=["silence", "highest", "lowest", "a click"],
)
def test_odd_sounds_have_finite_features(samples: Any) -> None:
    found = log_mel(samples.astype(np.int16), asked())
    assert np.isfinite(found).all()
    assert np.abs(found - by_transformers(samples, asked())).max() <= 1e-4


def test_how_many_frames_are_computed_at_once_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = log_mel(tone(440.0), asked())
    monkeypatch.setattr(features, "AT_ONCE", 100)
    assert np.array_equal(log_mel(tone(440.0), asked()), whole)


def test_settings_that_contradict_themselves() -> None:
    assert asked().odd() == ""
    assert "frames" in asked(frames=99).odd()
    assert "half a window" in asked(rate=1000, window=2000, hop=10).odd()
    assert "samples are heard" in asked(rate=48_000, seconds=300, frames=90_000 // 6).odd()
    for key, value in (
        *(("kind", "mfcc"), ("rate", 999), ("rate", 200_000), ("seconds", 0), ("seconds", 0.5)),
        *(("window", 401), ("window", 8), ("hop", 0), ("bands", 0), ("bands", 513)),
        *(("highest", 4000), ("frames", 2**14 + 1), ("dither", 0.0)),
    ):
        with pytest.raises(OddError, match=key):
            value_as(LogMel, SHORT | {key: value})


def test_a_wav_file_is_what_the_standard_library_reads() -> None:
    samples, buffer = tone(300.0), io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    assert np.array_equal(read_wav(buffer.getvalue(), rate=RATE, place="x"), samples)


def described(
    kind: int = 1, channels: int = 1, rate: int = RATE, bits: int = 16, align: int = 2
) -> bytes:
    return struct.pack("<HHIIHH", kind, channels, rate, rate * align, align, bits)


FMT, DATA = (b"fmt ", described()), (b"data", b"\1\2\3\4")
EXTENDED = (b"fmt ", described(0xFFFE) + struct.pack("<HHI", 22, 16, 4) + SUBFORMAT)


def test_what_stands_around_the_samples_is_passed_over() -> None:
    for data in (
        riff(FMT, DATA),
        riff((b"LIST", b"odd"), FMT, (b"fact", b"1234"), DATA, (b"id3 ", b"x" * 9)),
        riff(EXTENDED, DATA),
        riff(FMT, DATA) + b"\0" * 7,
    ):
        assert read_wav(data, rate=RATE, place="x").tolist() == [0x0201, 0x0403]


def refused(data: bytes) -> str:
    with pytest.raises(DataError) as caught:
        read_wav(data, rate=RATE, place="rows.jsonl: line 3")
    assert caught.value.cause.startswith("rows.jsonl: line 3: its sound is not read: ")
    assert f"{RATE} samples a second" in caught.value.remedy
    assert "rows" not in caught.value.public
    return caught.value.cause


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "no WAV file"),
        (b"a text", "no WAV file"),
        (b"RIFX" + riff(FMT, DATA)[4:], "no WAV file"),
        (b"RIFF\0\0\0\0AVI " + riff(FMT, DATA)[12:], "no WAV file"),
        (riff(FMT, DATA)[:-1], "cut off, or claims more"),
        (riff(FMT)[:-2], "cut off, or claims more"),
        (riff(FMT) + b"data" + struct.pack("<I", 0xFFFFFFFF) + b"1234", "claims more"),
        (riff(FMT), "it has no samples"),
        (riff(DATA), "before what describes them"),
        (riff(DATA, FMT), "before what describes them"),
        (riff(FMT, FMT, DATA), "described twice"),
        (riff(FMT, DATA, DATA), "or twice"),
        (riff(FMT, (b"data", b"")), "no whole sample"),
        (riff(FMT, (b"data", b"\1\2\3")), "no whole sample"),
        (riff((b"fmt ", described()[:15]), DATA), "cut off"),
        (riff((b"fmt ", described(kind=3)), DATA), "no PCM of 16 bits (format 3"),
        (riff((b"fmt ", described(kind=6, bits=8)), DATA), "no PCM of 16 bits (format 6, 8 bits)"),
        (riff((b"fmt ", described(bits=8)), DATA), "no PCM of 16 bits (format 1, 8 bits)"),
        (riff((b"fmt ", described(bits=24, align=3)), DATA), "no PCM of 16 bits"),
        (riff((b"fmt ", EXTENDED[1][:-1]), DATA), "no PCM of 16 bits (format 65534"),
        (riff((b"fmt ", EXTENDED[1].replace(b"\1\0\0\0", b"\3\0\0\0")), DATA), "format 65534"),
        (riff((b"fmt ", described(channels=2, align=4)), DATA), "2 channels"),
        (riff((b"fmt ", described(channels=0)), DATA), "0 channels"),
        (riff((b"fmt ", described(align=4)), DATA), "lie 4 bytes apart"),
        (riff((b"fmt ", described(rate=44_100)), DATA), "44100 samples a second, and the base"),
        (riff(FMT, *[(b"junk", b"")] * 999, DATA), "more than 1000 chunks"),
    ],
)
def test_what_is_no_such_sound_is_refused(data: bytes, cause: str) -> None:
    assert cause in refused(data)


def test_a_thousand_chunks_are_heard() -> None:
    """(P-1.16) So many, and not one fewer: a second reader by the text takes the same files."""
    assert len(read_wav(riff(FMT, *[(b"junk", b"")] * 998, DATA), rate=RATE, place="x"))


def test_long_sounds_are_answered_a_few_at_a_time() -> None:
    """Memory of attention grows with the square of positions: 30 seconds of Whisper's are 1,500."""
    manifest = small_media("audio-classification")
    few = {
        positions: manifest.model_copy(update={"max_positions": positions}).together(32)
        for positions in (1, 197, 512, 513, 1500, 100_000)
    }
    assert few == {1: 32, 197: 32, 512: 32, 513: 31, 1500: 3, 100_000: 1}


def test_bytes_and_seconds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sounds, "MOST_SECONDS", 1)
    assert len(read_wav(wav(np.zeros(RATE, np.int16)), rate=RATE, place="x")) == RATE
    assert "longer than 1 seconds" in refused(wav(np.zeros(RATE + 1, np.int16)))
    monkeypatch.setattr(media, "MOST_FILE", 99)
    with pytest.raises(DataError, match="x: its sound has more than 99 bytes"):
        read_file(wav(np.zeros(40, np.int16)), SoundCodec(asked()), place="x")


def test_want_of_memory_is_no_fault_of_a_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(sounds, "log_mel", full)
    with pytest.raises(MachineError, match="x: not enough memory"):
        read_file(wav(tone(300.0)), SoundCodec(asked()), place="x")


def test_a_sound_says_where_its_row_stands(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("audio\na.wav\nb.wav\n")
    rows, codec = read_media_paths(path, "audio"), SoundCodec(asked())
    (tmp_path / "a.wav").write_bytes(wav(tone(300.0)))
    (tmp_path / "b.wav").write_bytes(b"secret")
    with pytest.raises(DataError) as caught:
        read_inputs(rows, codec)
    assert caught.value.cause.startswith(f"{path}: line 3: its sound is not read")
    assert "secret" not in str(caught.value)
    with pytest.raises(DataError, match="sound 66: its sound"):
        read_inputs([row.path for row in rows], codec, first=65)
    (tmp_path / "b.wav").unlink()
    with pytest.raises(DataError, match="line 3: its sound cannot be read: No such file"):
        read_inputs(rows, codec)


@given(st.binary(max_size=120), st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_sound_or_refused(junk: bytes, at: int, end: int) -> None:
    """Also those of a sound with junk in it."""
    whole = wav(np.arange(8, dtype=np.int16))
    for data in (junk, whole[:at] + junk + whole[end:]):
        try:
            samples = read_wav(data, rate=RATE, place="x")
        except DataError:
            continue
        assert samples.dtype == np.int16
        assert 0 < 2 * len(samples) <= len(data)


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=400))
@settings(deadline=None)
def test_features_are_of_one_shape_and_within_their_range(values: list[int]) -> None:
    """The quietest is at most 8 below the loudest, over 4."""
    found = log_mel(np.array(values, np.int16), asked())
    assert found.shape == (80, 100)
    assert float(found.max() - found.min()) <= 2.0 + 1e-6


def test_loudness_moves_features_alike() -> None:
    """Ten times as loud: a power of 100, two of its logarithm, over 4."""
    hummed = np.sin(np.arange(RATE) / 9)
    low, high = (log_mel((hummed * by).astype(np.int16), asked()) for by in (3000, 30_000))
    loud = low > low.max() - 1.0
    np.testing.assert_allclose((high - low)[loud], 0.5, atol=0.01)
