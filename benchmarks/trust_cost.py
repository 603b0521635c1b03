"""What the protocol's checks cost a round of the demo: CPU and bytes, beside another state of this repository.

    git worktree add ../before b83db7f
    python benchmarks/trust_cost.py --before ../before [--repeats 3] [--rounds 4] [--json]

Both trees run the demo's experiment (20 devices, real training, in secret) in turn, each in a process of its own
with one thread. Reported are the ratio of the CPU seconds of a round (the first one, which opens the base, is left
out) and how many bytes more of text travel beside the messages, by client and round. Aims: 1.03, 2048.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DRIVER = """
import json, sys, time
from pathlib import Path
import server.receipts
import simulations.run
from fedge.main import main

marks, texts = [], []
watcher, log = simulations.run._Watcher, server.receipts.ClientsLog
on_round, beside = watcher.on_round, log.beside

def timed(self, record, tensors):
    begun = time.process_time()
    on_round(self, record, tensors)
    marks.append((begun, time.process_time(), sum(texts)))

def counted(self, *arguments):
    records = beside(self, *arguments)
    texts.extend(len(str(record["text"])) for record in records.values())
    return records

watcher.on_round, log.beside = timed, counted
out, rounds = sys.argv[1:3]
settings = ["yardsticks.pooled=false", "yardsticks.alone=0"]
settings += [f"plan.rounds={rounds}", f"plan.evaluation.every={rounds}"]
sys.argv = ["fedge", "simulate", "demo", "--out", out, "--json"]
sys.argv += [part for setting in settings for part in ("--set", setting)]
try:
    main()
except SystemExit as end:
    if end.code:
        raise
pairs = list(zip(marks, marks[1:]))
found = {"cpu_s": [after[0] - before[1] for before, after in pairs]}
found["bytes"] = [after[2] - before[2] for before, after in pairs]
Path(out, "trust_cost.json").write_text(json.dumps(found))
"""


def measured(tree: Path, out: Path, rounds: int) -> dict[str, list[float]]:
    """CPU seconds and bytes of text of each round but the first."""
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(tree)}
    command = [sys.executable, "-c", DRIVER, str(out), str(rounds)]
    done = subprocess.run(command, cwd=tree, env=os.environ | own, capture_output=True, text=True)
    path = out / "trust_cost.json"
    if done.returncode or not path.exists():
        raise SystemExit(f"{tree}: {done.stdout.strip()[-2000:]} {done.stderr.strip()[-2000:]}")
    return dict(json.loads(path.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--devices", type=int, default=20, help="that take part in a round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    before: list[dict[str, list[float]]] = []
    now: list[dict[str, list[float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats):
            pairs = [(arguments.before.resolve(), before), (ROOT, now)]
            for tree, results in pairs if repeat % 2 == 0 else pairs[::-1]:
                out = Path(folder) / f"{repeat}-{len(before)}-{len(now)}"
                results.append(measured(tree, out, arguments.rounds))
    cpu = [statistics.median(v for run in runs for v in run["cpu_s"]) for runs in (before, now)]
    text = [
        statistics.mean(v for run in runs for v in run["bytes"]) / arguments.devices
        for runs in (before, now)
    ]
    ratios = [
        statistics.median(b["cpu_s"]) / statistics.median(a["cpu_s"])
        for a, b in zip(before, now, strict=True)
    ]
    found = {
        "before_cpu_s": cpu[0],
        "now_cpu_s": cpu[1],
        "cpu_over_before": cpu[1] / cpu[0],
        "smallest": min(ratios),
        "largest": max(ratios),
        "before_bytes": text[0],
        "now_bytes": text[1],
        "more_bytes": text[1] - text[0],
    }
    if arguments.json:
        print(json.dumps(found))
        return
    print(
        f"CPU of a round: before {cpu[0]:.2f} s, now {cpu[1]:.2f} s, ratio {found['cpu_over_before']:.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}), aim 1.03"
    )
    print(
        f"text beside the messages, a client and round: {text[0]:.0f} then {text[1]:.0f} bytes, "
        f"{found['more_bytes']:.0f} more, aim 2048"
    )


if __name__ == "__main__":
    main()
