"""What secrecy costs in accuracy: BANKING77 under `plain` and under `secagg`, same seeds.

    python benchmarks/secret_accuracy.py [--out DIR] [--rules a,b] [--rounds 12] [--json]

The experiment is `banking77` without its yardsticks; both exchanges weigh clients alike. One table
row per rule: accuracy under both and the difference in points. Resumable: a finished run is not run
again. About 15 minutes per run on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMPT = ["plan.adapter.method=prompt", "plan.adapter.tokens=8", "plan.local.learning_rate=1e-2"]
RULES: dict[str, list[str]] = {
    "alternating": [],
    "ffa-lora": [],
    "fed-sb": ["plan.adapter.targets=all-linear", "plan.local.learning_rate=1e-2"],
    "prompt-mean": PROMPT,
}


def accuracy(rule: str, exchange: str, out: Path, rounds: int) -> float:
    """Test accuracy of one run, in percent; run now unless it is there."""
    folder = out / f"{rule}-{exchange}-{rounds}"
    summary = folder / "summary.json"
    if not summary.exists():
        settings = [
            f"plan.rule.name={rule}",
            f"plan.secrecy.exchange={exchange}",
            f"plan.rounds={rounds}",
            "yardsticks.pooled=false",
            "yardsticks.alone=0",
            *RULES[rule],
        ]
        command = [sys.executable, "-m", "fedge", "simulate", "banking77", "--out", str(folder)]
        command += [part for setting in settings for part in ("--set", setting)]
        if folder.exists():
            command.append("--resume")
        threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [*command, "--json"], cwd=ROOT, env=os.environ | threads, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{rule}, {exchange}: {done.stdout.strip()} {done.stderr.strip()}")
        print(f"done: {rule}, {exchange}", file=sys.stderr, flush=True)
    return 100 * float(json.loads(summary.read_text())["accuracy_federated"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "secret-accuracy")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for rule in arguments.rules.split(","):
        plain, secret = (
            accuracy(rule, exchange, arguments.out, arguments.rounds)
            for exchange in ("plain", "secagg")
        )
        rows.append({"rule": rule, "plain": plain, "secagg": secret, "points": secret - plain})
    if arguments.json:
        print(json.dumps(rows))
        return
    print(
        f"BANKING77, Dirichlet 0.5, {arguments.rounds} rounds, uniform weights, test accuracy in %"
    )
    print("| rule | plain | secagg | difference |")
    print("|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['rule']} | {row['plain']:.2f} | {row['secagg']:.2f} | {row['points']:+.2f} |"
        )


if __name__ == "__main__":
    main()
