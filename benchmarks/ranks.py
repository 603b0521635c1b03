"""What releases answer at lower ranks: of `dylora`, whose steps use first ranks, and of `lora`, cut in the same way.

    python benchmarks/ranks.py [--out runs/ranks] [--seeds 3] [--json]

Each cell is a run of `fedge simulate demo` (rank 8, four rounds) with one method and one seed; a cell that is
finished is not run again. Its release answers the run's test rows at ranks 8, 4, 2 and 1, as `fedge edge infer
--rank` does: the share of right labels.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from cells import ROOT, summary_of

from edge_runtime.base import EdgeBase
from edge_runtime.runtime import EdgeRuntime

METHODS, RANKS = ("dylora", "lora"), (8, 4, 2, 1)
ALONE = ["yardsticks.pooled=false", "yardsticks.alone=0"]


def accuracies(run: Path, summary: dict[str, Any]) -> list[float]:
    """Of a run's release on the run's test rows, by rank."""
    rows = [json.loads(line) for line in (run / "test.jsonl").read_text("utf-8").splitlines()]
    runtime = EdgeRuntime(EdgeBase.open(Path(summary["base"])))
    shares = []
    for rank in RANKS:
        runtime.activate(Path(summary["adapter"]), rank=rank)
        answers = runtime.infer([row["text"] for row in rows])
        right = [answer.answer == row["label"] for answer, row in zip(answers, rows, strict=True)]
        shares.append(sum(right) / len(rows))
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "ranks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    table: dict[str, list[list[float]]] = {}
    for method in METHODS:
        for seed in range(arguments.seeds):
            out = arguments.out / f"{method}-{seed}"
            settings = [f"plan.adapter.method={method}", f"plan.seed={seed}", *ALONE]
            summary = summary_of("demo", out, settings)
            table.setdefault(method, []).append(accuracies(out, summary))
    if arguments.json:
        print(json.dumps({"ranks": RANKS, "accuracy": table}))
        return
    print("method", *(f"rank {rank}" for rank in RANKS))
    for method, runs in table.items():
        print(method, *(f"{statistics.mean(column):.3f}" for column in zip(*runs, strict=True)))


if __name__ == "__main__":
    main()
