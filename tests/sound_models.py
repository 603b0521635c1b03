"""Random encoders of sounds, as transformers saves them, and sounds of a tone in noise."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import (
    PreTrainedModel,
    WhisperConfig,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from base_model.sounds.families import FAMILIES as ROWS

FAMILIES = ("whisper", "wav2vec2", "hubert")  # the last two are in tests/waveform_models.py
LABELS = ["light", "music", "timer", "other"]
RATE, BANDS, HOP, WINDOW = 16_000, 8, 800, 256  # of a second: 20 frames, ten positions
assert set(FAMILIES) == ROWS.keys()


def preprocessing(**others: Any) -> dict[str, Any]:
    """``preprocessor_config.json`` as transformers writes it."""
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": BANDS,
        "sampling_rate": RATE,
        "hop_length": HOP,
        "chunk_length": 1,
        "n_fft": WINDOW,
        "n_samples": RATE,
        "nb_max_frames": RATE // HOP,
        "dither": 0.0,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    } | others


def write_sounds_source(
    folder: Path,
    *,
    head: str = "",
    settings: dict[str, Any] | None = None,
    seed: int = 0,
    **config: Any,
) -> Path:
    """A tiny Whisper: encoder and decoder, or with ``head`` "own" or "other" one of the classes on it."""
    folder.mkdir(parents=True)
    named = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    shape = WhisperConfig(
        **{
            **{"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4},
            **{"encoder_ffn_dim": 48, "num_mel_bins": BANDS, "classifier_proj_size": 24},
            **{"max_source_positions": RATE // HOP // 2, "vocab_size": 40, "pad_token_id": 0},
            **{"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 16},
            **{"max_target_positions": 8, "bos_token_id": 1, "eos_token_id": 2},
            **{"decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None},
            **(named if head else {}),
            **config,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel
        match head:
            case "own":
                model = WhisperForAudioClassification(shape)
            case "other":
                model = WhisperForConditionalGeneration(shape)
            case _:
                model = WhisperModel(shape)
        for name, parameter in model.float().named_parameters():  # large: the sound shall matter
            norm = "layer_norm" in name and name.endswith("weight")
            torch.nn.init.normal_(parameter, float(norm), 0.3 if parameter.ndim > 1 else 0.1)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings or preprocessing()))
    return folder


def wav(
    samples: npt.NDArray[np.int16], *, rate: int = RATE, channels: int = 1, kind: int = 1
) -> bytes:
    """A WAV file of PCM with 16 bits."""
    data = samples.astype("<i2").tobytes()
    align = 2 * channels
    described = struct.pack("<HHIIHH", kind, channels, rate, rate * align, align, 16)
    return riff((b"fmt ", described), (b"data", data))


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WAV file of these chunks."""
    body = b"".join(
        name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
        for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def tone(hertz: float, *, seconds: float = 0.8, rate: int = RATE, seed: int = 0) -> Any:
    """(samples,) int16: a tone in noise."""
    rng, count = np.random.default_rng(seed), int(seconds * rate)
    wave = np.sin(2 * np.pi * hertz * np.arange(count) / rate + rng.uniform(0, 6))
    return np.round(8000 * wave + rng.normal(0, 2000, count)).astype(np.int16)


def write_sounds(folder: Path, count: int, *, seed: int = 0) -> list[Path]:
    """Tones in noise as WAV, each of a height of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, paths = np.random.default_rng(seed), []
    for number in range(count):
        paths.append(folder / f"{number}.wav")
        heard = tone(np.exp(rng.uniform(5, 8.8)), seconds=rng.uniform(0.3, 1.3), seed=seed + number)
        paths[-1].write_bytes(wav(heard))
    return paths
