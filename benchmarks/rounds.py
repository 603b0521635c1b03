"""A round of a hundred clients with few rows a step, beside b83db7f's and beside Flower's simulation with peft.

    git worktree add ../before b83db7f
    pip install -e '.[dev,ray]'     # for Flower's simulation; without it that peer is left out
    python benchmarks/rounds.py --before ../before [--batches 4,16] [--repeats 3] [--out FOLDER] [--json]

The demo's rows over 100 clients (iid), MiniLM on int4, LoRA of rank 8, one round of `mean` in clear, whole: requests,
training, sums, evaluation of the round. In turn, each in a process of its own with both cores; medians of the round's
wall seconds. ``over_before`` and ``over_flower``: how many times as many client steps a second. Aims (issue 16):
3.0 and 8 in batches of 4, 2.0 and 5 in batches of 16. Flower's clients are written as its users write them
(``benchmarks/peers/flower.py``) and train in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
QUIET = {"HF_HUB_OFFLINE": "1", "FLWR_TELEMETRY_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false"}
CLIENTS = 100
SETTINGS = (
    f"population.clients={CLIENTS}",
    "population.partition=iid",
    'population.column=""',
    f"plan.cohort.size={CLIENTS}",
    "plan.cohort.quorum=80",
    "plan.rounds=1",
    "plan.secrecy.exchange=plain",
    "plan.server.optimizer=fedavg",
    "yardsticks.pooled=false",
    "yardsticks.alone=0",
)


def round_seconds(tree: Path, out: Path, rule: str, batch: int, bits: int = 4) -> float:
    """Of the only round of a run of ``tree`` into ``out``, a fresh folder."""
    shutil.rmtree(out, ignore_errors=True)
    settings = [*SETTINGS, f"plan.rule.name={rule}", f"plan.local.batch_size={batch}"]
    settings.append(f"base.bits={bits}")
    command = [sys.executable, "-m", "fedge", "simulate", "demo", "--out", str(out), "--json"]
    run(command + [part for setting in settings for part in ("--set", setting)], tree)
    return float(json.loads((out / "timings.json").read_text())["rounds"]["1"])


def flower_seconds(prepared: Path, result: Path) -> float:
    """Of the round of Flower's simulation on the rows of a run of fedge."""
    run([sys.executable, str(HERE / "peers" / "flower.py"), str(prepared), str(result)], ROOT)
    return float(json.loads(result.read_text())["rounds"][-1]["seconds"])


def run(command: list[str], tree: Path) -> None:
    environment = {**os.environ, **QUIET, "PYTHONPATH": str(tree)}
    environment.pop("OMP_NUM_THREADS", None)  # each uses both cores as it does by itself
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:5])}: {done.stderr[-2000:]}")


def measure(before: Path, batch: int, repeats: int, out: Path) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"fedge": [], "before": [], "flower": []}
    for _ in range(repeats):
        seconds["fedge"].append(round_seconds(ROOT, out / "fedge", "mean", batch))
        seconds["before"].append(round_seconds(before, out / "before", "fedit", batch))
    if find_spec("ray") is not None:  # it is so slow that once will do
        prepared = out / "fedge-32"
        round_seconds(ROOT, prepared, "mean", batch, bits=32)
        seconds["flower"].append(flower_seconds(prepared, out / "flower.json"))
    medians = {name: statistics.median(each) for name, each in seconds.items() if each}
    ratios = {f"over_{n}": s / medians["fedge"] for n, s in medians.items() if n != "fedge"}
    return {"batch": batch, "seconds": seconds, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--batches", default="4,16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench-rounds"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    before, out = arguments.before.resolve(), arguments.out.resolve()
    batches = [int(each) for each in arguments.batches.split(",")]
    results = [measure(before, batch, arguments.repeats, out / str(batch)) for batch in batches]
    if arguments.json:
        print(json.dumps(results))
        return
    for result in results:
        print(f"batches of {result['batch']}:")
        for name, seconds in result["seconds"].items():
            print(f"  {name:8} {' '.join(f'{each:6.1f}' for each in seconds)} s a round")
        for name in ("over_before", "over_flower"):
            print(f"  {name}: {result.get(name, float('nan')):.2f}")


if __name__ == "__main__":
    main()
