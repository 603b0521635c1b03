"""A small encoder of speech for the experiment `speech`: trained in the clear on digits that no site has.

    python benchmarks/speech.py OUT [--front wav2vec2]

writes ``OUT/model``, a ``WhisperForAudioClassification``, or with ``--front wav2vec2`` a
``Wav2Vec2ForSequenceClassification``, of one second at 8 kHz that has heard the digits 0 to 4 of ``fsdd`` and no
other, and ``OUT/train.jsonl`` and ``OUT/test.jsonl`` with WAV files beside them: the digits 5 to 9,
which it never heard, each with its speaker. The experiment is beside them: ``fedge simulate OUT/speech.toml``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
)

PROJECT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FEDGE_SHARED", PROJECT.parent / "shared"))
RATE, SEEN = 8000, 5
EPOCHS, BATCH, LEARNING_RATE = 30, 32, 1e-3
Samples = npt.NDArray[np.int16]
Row = dict[str, Any]


def read_recordings() -> list[tuple[Row, Samples]]:
    """What is said of each recording, and its samples at 8 kHz."""
    folder = SHARED / "data" / "fsdd"
    rows = [json.loads(line) for line in (folder / "meta.jsonl").read_text("utf-8").splitlines()]
    with np.load(folder / "audio_8khz_int16.npz") as archive:
        return [(row, archive[row["id"]]) for row in rows]


def whisper_extractor() -> WhisperFeatureExtractor:
    """Windows of 25 ms every 10 ms."""
    return WhisperFeatureExtractor(
        feature_size=40, sampling_rate=RATE, hop_length=80, chunk_length=1, n_fft=200
    )


def whisper(names: list[str]) -> WhisperForAudioClassification:
    return WhisperForAudioClassification(
        WhisperConfig(
            d_model=64,
            encoder_layers=3,
            encoder_attention_heads=4,
            encoder_ffn_dim=128,
            num_mel_bins=40,
            max_source_positions=50,
            classifier_proj_size=64,
            dropout=0.1,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
    )


def wav2vec2_extractor() -> Wav2Vec2FeatureExtractor:
    """Each sound normalised by itself, zeros behind it."""
    return Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=False)


def wav2vec2(names: list[str]) -> Wav2Vec2ForSequenceClassification:
    """Positions of 20 ms, as Whisper's, of convolutions with a norm over time."""
    return Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=128,
            conv_dim=[48] * 6,
            conv_kernel=[10, 3, 3, 3, 3, 2],
            conv_stride=[5, 2, 2, 2, 2, 2],
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            classifier_proj_size=64,
            apply_spec_augment=False,
            layerdrop=0.0,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
    )


FRONTS: dict[str, tuple[Any, Any, int]] = {  # extractor, model, seconds that a base has to be told
    "whisper": (whisper_extractor, whisper, 0),
    "wav2vec2": (wav2vec2_extractor, wav2vec2, 1),
}


def as_input(extractor: Any, recordings: list[Samples]) -> Tensor:
    heard = [samples.astype(np.float32) / 32768 for samples in recordings]
    how: dict[str, Any] = {"padding": "max_length", "max_length": RATE, "truncation": True}
    how |= {"return_attention_mask": True}  # each is normalised without what is behind it
    inputs = extractor(heard, sampling_rate=RATE, return_tensors="pt", **how)
    features: Tensor = inputs[extractor.model_input_names[0]]
    return features


def batches(count: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    order = rng.permutation(count)
    for start in range(0, count, BATCH):
        yield order[start : start + BATCH]


def train(make: Any, features: Tensor, labels: Tensor) -> PreTrainedModel:
    """On all of them, from a seed; one thread, a minute or so."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model: PreTrainedModel = make([str(digit) for digit in range(SEEN)]).train()
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    for _ in range(EPOCHS):
        for index in batches(len(features), rng):
            answers = model(features[index]).logits
            loss = torch.nn.functional.cross_entropy(answers, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def write_rows(folder: Path, name: str, recordings: list[tuple[Row, Samples]]) -> None:
    """A row a line, and its sound as a file of its own."""
    (folder / name).mkdir()
    lines = []
    for row, samples in recordings:
        path = Path(name) / f"{row['id']}.wav"
        with wave.open(str(folder / path), "wb") as file:
            file.setparams((1, 2, RATE, len(samples), "NONE", ""))
            file.writeframes(samples.astype("<i2").tobytes())
        line = {"audio": str(path), "label": str(row["label"]), "speaker": row["client"]}
        lines.append(json.dumps(line) + "\n")
    (folder / f"{name}.jsonl").write_text("".join(lines))


def main() -> None:
    """Write the folder that is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--front", choices=FRONTS, default="whisper")
    asked = parser.parse_args()
    out, (make_extractor, make, seconds) = asked.out, FRONTS[asked.front]
    extractor = make_extractor()
    out.mkdir(parents=True)
    recordings = read_recordings()
    parts = {
        (seen, split): [
            (row, samples)
            for row, samples in recordings
            if (row["label"] < SEEN) is seen and row["split"] == split
        ]
        for seen in (True, False)
        for split in ("train", "test")
    }
    began = time.monotonic()
    heard = {
        split: (
            as_input(extractor, [samples for _, samples in parts[True, split]]),
            torch.tensor([row["label"] for row, _ in parts[True, split]]),
        )
        for split in ("train", "test")
    }
    model = train(make, *heard["train"])
    with torch.no_grad():
        guesses = model(heard["test"][0]).logits.argmax(-1)
    right = float((guesses == heard["test"][1]).float().mean())
    model.save_pretrained(out / "model")
    extractor.save_pretrained(out / "model")
    for split in ("train", "test"):
        write_rows(out, split, parts[False, split])
    experiment = Path(__file__).with_suffix(".toml")
    text = experiment.read_text("utf-8").replace("bits = 8\n", f"bits = 8\nseconds = {seconds}\n")
    (out / experiment.name).write_text(text, "utf-8")
    print(
        f"{sum(p.numel() for p in model.parameters())} weights, {time.monotonic() - began:.0f} s; "
        f"digits 0 to 4: {right:.3f} of {len(guesses)} kept out are right; for the sites: "
        f"{len(parts[False, 'train'])} recordings of the others, {len(parts[False, 'test'])} to test on"
    )


if __name__ == "__main__":
    main()
