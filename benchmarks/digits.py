"""A small vision transformer for the experiment `digits`: trained in the clear on digits that no site has.

    python benchmarks/digits.py OUT

writes ``OUT/model``, a ``ViTForImageClassification`` that has seen the digits 0 to 4 of ``mnist_10k`` and no other,
and ``OUT/train.jsonl`` and ``OUT/test.jsonl`` with PNG files beside them: the digits 5 to 9, which it never saw. The
experiment is beside them: ``fedge simulate OUT/digits.toml``.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

PROJECT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FEDGE_SHARED", PROJECT.parent / "shared"))
SIDE, SEEN, TEST_SHARE = 28, 5, 0.2
EPOCHS, BATCH, RATE = 12, 64, 1e-3
MEAN, STD, SCALE = 0.5, 0.5, 1 / 255
Bytes = npt.NDArray[np.uint8]


def read_idx(name: str, dimensions: int) -> Bytes:
    """The array of a gzipped IDX file of bytes: magic number, sizes, values (LeCun's format)."""
    data = gzip.decompress((SHARED / "data" / "mnist_10k" / name).read_bytes())
    magic, *sizes = np.frombuffer(data, ">u4", 1 + dimensions).tolist()
    if magic != 0x0800 + dimensions:
        raise SystemExit(f"{name} is no IDX file of {dimensions} dimensions")
    return np.frombuffer(data, np.uint8, offset=4 * (1 + dimensions)).reshape(sizes)


def batches(count: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    order = rng.permutation(count)
    for start in range(0, count, BATCH):
        yield order[start : start + BATCH]


def as_input(images: Bytes) -> Tensor:
    scaled = (images[:, None].astype(np.float32) * SCALE - MEAN) / STD
    return torch.from_numpy(scaled.astype(np.float32))


def train(images: Bytes, labels: Bytes) -> ViTForImageClassification:
    """On all of them, from a seed; one thread, a minute or two."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    names = [str(digit) for digit in range(SEEN)]
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=SIDE,
        patch_size=7,
        num_channels=1,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    model, rng = ViTForImageClassification(config).train(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    for _ in range(EPOCHS):
        for index in batches(len(images), rng):
            answers = model(pixel_values=as_input(images[index])).logits
            wanted = torch.from_numpy(labels[index].astype(np.int64))
            loss = torch.nn.functional.cross_entropy(answers, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def save(model: ViTForImageClassification, folder: Path) -> None:
    model.save_pretrained(folder)
    settings = {
        "image_processor_type": "ViTImageProcessor",
        **{"do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 2},
        **{"do_rescale": True, "rescale_factor": SCALE},
        **{"do_normalize": True, "image_mean": [MEAN], "image_std": [STD]},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def write_rows(folder: Path, name: str, images: Bytes, labels: Bytes) -> None:
    """A row a line, and its image as a file of its own."""
    (folder / name).mkdir()
    lines = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = Path(name) / f"{number:05}.png"
        Image.fromarray(image).save(folder / path)
        lines.append(json.dumps({"image": str(path), "label": str(label)}) + "\n")
    (folder / f"{name}.jsonl").write_text("".join(lines))


def main() -> None:
    """Write the folder that is named."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True)
    images = read_idx("t10k-images-idx3-ubyte.gz", 3)
    labels = read_idx("t10k-labels-idx1-ubyte.gz", 1)
    seen = labels < SEEN
    tested = np.random.default_rng(0).random(len(labels)) < TEST_SHARE
    began = time.monotonic()
    model = train(images[seen & ~tested], labels[seen & ~tested])
    with torch.no_grad():
        guesses = model(pixel_values=as_input(images[seen & tested])).logits.argmax(-1).numpy()
    right = float((guesses == labels[seen & tested]).mean())
    save(model, out / "model")
    for name, chosen in (("train", ~seen & ~tested), ("test", ~seen & tested)):
        write_rows(out, name, images[chosen], labels[chosen])
    experiment = Path(__file__).with_suffix(".toml")
    (out / experiment.name).write_text(experiment.read_text("utf-8"), "utf-8")
    print(
        f"{sum(p.numel() for p in model.parameters())} weights, {time.monotonic() - began:.0f} s; "
        f"digits 0 to 4: {right:.3f} of {len(guesses)} kept out are right; for the sites: "
        f"{int((~seen & ~tested).sum())} images of the others, {int((~seen & tested).sum())} to test on"
    )


if __name__ == "__main__":
    main()
