"""What secrecy costs in accuracy: BANKING77 under `plain` and under `secagg`, same seeds.

    python benchmarks/secret_accuracy.py [--out DIR] [--rules a,b] [--rounds 12] [--json]

The experiment is `banking77` without its yardsticks; both exchanges weigh clients alike. One table
row per rule: accuracy under both and the difference in points. Resumable: a finished run is not run
again. About 15 minutes per run on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cells import ROOT, summary_of

PROMPT = ["plan.adapter.method=prompt", "plan.adapter.tokens=8", "plan.local.learning_rate=1e-2"]
RULES: dict[str, list[str]] = {
    "alternating": [],
    "first": ["plan.rule.name=first"],
    "lora-sb": [
        "plan.adapter.method=lora-sb",
        "plan.adapter.targets=all-linear",
        "plan.local.learning_rate=1e-2",
    ],
    "prompt": PROMPT,
}


def accuracy(rule: str, exchange: str, out: Path, rounds: int) -> float:
    """Test accuracy of one run, in percent; run now unless it is there."""
    folder = out / f"{rule}-{exchange}-{rounds}"
    settings = [
        f"plan.secrecy.exchange={exchange}",
        f"plan.rounds={rounds}",
        "yardsticks.pooled=false",
        "yardsticks.alone=0",
        *RULES[rule],
    ]
    return 100 * float(summary_of("banking77", folder, settings)["accuracy_federated"])


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
