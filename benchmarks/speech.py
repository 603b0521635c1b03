"""A small encoder of speech for the experiment `speech`: trained in the clear on digits that no site has.

    python benchmarks/speech.py OUT

writes ``OUT/model``, a ``WhisperForAudioClassification`` of one second at 8 kHz that has heard the digits 0 to 4 of
``fsdd`` and no other, and ``OUT/train.jsonl`` and ``OUT/test.jsonl`` with WAV files beside them: the digits 5 to 9,
which it never heard, each with its speaker. The experiment is beside them: ``fedge simulate OUT/speech.toml``.
"""

from __future__ import annotations

import json
import os
import sys
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForAudioClassification

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


def extractor() -> WhisperFeatureExtractor:
    """Windows of 25 ms every 10 ms."""
    return WhisperFeatureExtractor(
        feature_size=40, sampling_rate=RATE, hop_length=80, chunk_length=1, n_fft=200
    )


def as_input(recordings: list[Samples]) -> Tensor:
    heard = [samples.astype(np.float32) / 32768 for samples in recordings]
    features: Tensor = extractor()(heard, sampling_rate=RATE, return_tensors="pt").input_features
    return features


def batches(count: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    order = rng.permutation(count)
    for start in range(0, count, BATCH):
        yield order[start : start + BATCH]


def train(features: Tensor, labels: Tensor) -> WhisperForAudioClassification:
    """On all of them, from a seed; one thread, a minute or so."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    names = [str(digit) for digit in range(SEEN)]
    config = WhisperConfig(
        d_model=64,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=128,
        num_mel_bins=features.shape[1],
        max_source_positions=features.shape[2] // 2,
        classifier_proj_size=64,
        dropout=0.1,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    model, rng = WhisperForAudioClassification(config).train(), np.random.default_rng(0)
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
    out = Path(sys.argv[1])
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
            as_input([samples for _, samples in parts[True, split]]),
            torch.tensor([row["label"] for row, _ in parts[True, split]]),
        )
        for split in ("train", "test")
    }
    model = train(*heard["train"])
    with torch.no_grad():
        guesses = model(heard["test"][0]).logits.argmax(-1)
    right = float((guesses == heard["test"][1]).float().mean())
    model.save_pretrained(out / "model")
    extractor().save_pretrained(out / "model")
    for split in ("train", "test"):
        write_rows(out, split, parts[False, split])
    experiment = Path(__file__).with_suffix(".toml")
    (out / experiment.name).write_text(experiment.read_text("utf-8"), "utf-8")
    print(
        f"{sum(p.numel() for p in model.parameters())} weights, {time.monotonic() - began:.0f} s; "
        f"digits 0 to 4: {right:.3f} of {len(guesses)} kept out are right; for the sites: "
        f"{len(parts[False, 'train'])} recordings of the others, {len(parts[False, 'test'])} to test on"
    )


if __name__ == "__main__":
    main()
