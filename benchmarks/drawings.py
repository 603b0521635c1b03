"""A small diffusion transformer for the experiment `drawings`: trained in the clear on digits that no site has.

    python -m benchmarks.drawings OUT

writes ``OUT/model``, a pipeline's folder as diffusers saves one, whose transformer has seen the digits 0 to 4 of
``mnist_10k`` and no other, and ``OUT/train.jsonl`` and ``OUT/test.jsonl`` with PNG files beside them: the digits 5 to
9. The experiment is beside them: ``fedge simulate OUT/drawings.toml``. Of a run

    python -m benchmarks.drawings OUT RUN

writes ``OUT/sheet.png``: what a device draws of each digit, by the base alone above, by the run's adapter below.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.Image import Resampling
from safetensors.torch import save_file

from base_model.denoisers.families import shape_of
from base_model.denoisers.torch_model import Denoiser
from benchmarks.digits import SEEN, TEST_SHARE, Bytes, batches, read_idx, write_rows
from edge_runtime.drawing.adapters import load_drawing_adapter
from edge_runtime.drawing.base import DrawingBase
from edge_runtime.drawing.sampling import Wish, drawn
from protocol.denoiser_manifest import drawn_pixels
from protocol.noise import Schedule, noisy
from protocol.rows.images import as_input

SIDE, DIGITS = 14, 10  # pixels: half of what the files have
EPOCHS, RATE, WITHOUT_CLASS = 40, 2e-3, 0.1
CONFIG = {
    **{"_class_name": "DiTTransformer2DModel", "activation_fn": "gelu-approximate"},
    **{"attention_bias": True, "attention_head_dim": 16, "num_attention_heads": 4},
    **{"in_channels": 1, "out_channels": 1, "num_layers": 4, "norm_type": "ada_norm_zero"},
    **{"norm_elementwise_affine": False, "norm_eps": 1e-5, "num_embeds_ada_norm": DIGITS},
    **{"patch_size": 2, "sample_size": SIDE, "upcast_attention": False},
}
SCHEDULER = {
    **{
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
    },
    **{"beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"},
}
PIXELS = drawn_pixels(1, SIDE)
SCHEDULE = Schedule(steps=1000, betas="scaled_linear", start=0.00085, end=0.012)


def train(images: Bytes, labels: Bytes) -> Denoiser:
    """On all of them, from a seed; one thread, some minutes. A class is left out of some rows."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, rng = Denoiser(shape_of(CONFIG, source="here")).train(), np.random.default_rng(0)
    for name, value in model.named_parameters():
        # a block begins as nothing, and so does the output (adaLN-zero, arXiv 2212.09748)
        if name.endswith(("norm1.linear.weight", "norm1.linear.bias")) or "proj_out" in name:
            torch.nn.init.zeros_(value)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    count = EPOCHS * -(-len(images) // 64)
    falling = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, count)
    small = [Image.fromarray(image).resize((SIDE, SIDE), Resampling.BICUBIC) for image in images]
    clean = as_input(np.stack([np.asarray(image) for image in small])[:, None], PIXELS)
    for _ in range(EPOCHS):
        for index in batches(len(images), rng):
            noise = rng.standard_normal(clean[index].shape, np.float32)
            steps = rng.integers(0, SCHEDULE.steps, len(index))
            classes = labels[index].astype(np.int64)
            classes[rng.random(len(index)) < WITHOUT_CLASS] = DIGITS
            seen = noisy(clean[index], noise, steps, SCHEDULE)
            noise_of_model = model(*(torch.from_numpy(x) for x in (seen, steps, classes)))
            loss = ((noise_of_model - torch.from_numpy(noise)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            falling.step()
    return model.eval()


def save(model: Denoiser, folder: Path) -> None:
    """As diffusers' ``save_pretrained``."""
    for name, document in (
        ("transformer/config.json", CONFIG),
        ("scheduler/scheduler_config.json", SCHEDULER),
    ):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(json.dumps(document, indent=1) + "\n")
    save_file(
        {name: value.detach().contiguous() for name, value in model.state_dict().items()},
        folder / "transformer" / "diffusion_pytorch_model.safetensors",
    )


def sheet(run: Path) -> npt.NDArray[np.uint8]:
    """Of each digit four images by the base, and four by the last adapter: (height, width)."""
    base_folder = json.loads((run / "experiment.json").read_text())["base_folder"]
    base = DrawingBase.open((run / base_folder).resolve(), threads=1)
    last = max((run / "rounds").glob("[0-9]*")) / "adapter"
    columns = []
    for digit in range(DIGITS):
        wish = Wish(label=str(digit), images=4)
        parts = [drawn(base, each, wish) for each in (None, load_drawing_adapter(last, base))]
        columns.append(np.concatenate([image[0] for part in parts for image in part]))
    return np.concatenate(columns, 1)


def main() -> None:
    """Write the folder that is named, or the sheet of a run."""
    out = Path(sys.argv[1])
    if len(sys.argv) > 2:
        Image.fromarray(sheet(Path(sys.argv[2]))).save(out / "sheet.png")
        return
    out.mkdir(parents=True)
    images = read_idx("t10k-images-idx3-ubyte.gz", 3)
    labels = read_idx("t10k-labels-idx1-ubyte.gz", 1)
    seen = labels < SEEN
    tested = np.random.default_rng(0).random(len(labels)) < TEST_SHARE
    began = time.process_time()
    model = train(images[seen & ~tested], labels[seen & ~tested])
    save(model, out / "model")
    for name, chosen in (("train", ~seen & ~tested), ("test", ~seen & tested)):
        write_rows(out, name, images[chosen], labels[chosen])
    experiment = Path(__file__).with_suffix(".toml")
    (out / experiment.name).write_text(experiment.read_text("utf-8"), "utf-8")
    print(
        f"{sum(p.numel() for p in model.parameters())} weights, {time.process_time() - began:.0f} s of CPU; "
        f"for the sites: {int((~seen & ~tested).sum())} images of the digits 5 to 9, "
        f"{int((~seen & tested).sum())} to test on"
    )


if __name__ == "__main__":
    main()
