"""What secrecy costs in time: a round of the demo under `plain` and under `secagg`, side by side.

    python benchmarks/demo_round.py [--repeats 3] [--rounds 2] [--json]

Both exchanges run the demo's experiment (20 devices, real training) in turn; reported is the ratio of
the median seconds of a round, with the smallest and largest ratio of a pair. Aim: 1.10.
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


def seconds(exchange: str, folder: Path, rounds: int) -> list[float]:
    """Wall seconds of each round of one run."""
    out = folder / f"{exchange}-{len(list(folder.iterdir()))}"
    settings = [
        f"plan.secrecy.exchange={exchange}",
        f"plan.rounds={rounds}",
        "yardsticks.pooled=false",
        "yardsticks.alone=0",
        f"plan.evaluation.every={rounds}",
    ]
    command = [sys.executable, "-m", "fedge", "simulate", "demo", "--out", str(out), "--json"]
    command += [part for setting in settings for part in ("--set", setting)]
    threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | threads, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{exchange}: {done.stdout.strip()} {done.stderr.strip()}")
    return [float(v) for v in json.loads((out / "timings.json").read_text())["rounds"].values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    plain: list[float] = []
    secret: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repeats):
            plain += seconds("plain", Path(folder), arguments.rounds)
            secret += seconds("secagg", Path(folder), arguments.rounds)
    ratios = [b / a for a, b in zip(plain, secret, strict=True)]
    found = {
        "plain_s": statistics.median(plain),
        "secagg_s": statistics.median(secret),
        "ratio": statistics.median(secret) / statistics.median(plain),
        "smallest": min(ratios),
        "largest": max(ratios),
    }
    if arguments.json:
        print(json.dumps(found))
        return
    print(
        f"a round of the demo: plain {found['plain_s']:.2f} s, secagg {found['secagg_s']:.2f} s, "
        f"ratio {found['ratio']:.3f} ({found['smallest']:.3f} to {found['largest']:.3f}), aim 1.10"
    )


if __name__ == "__main__":
    main()
