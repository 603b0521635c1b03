"""Accuracy against epsilon: BANKING77 with distributed noise, for Fed-SB and for soft prompts.

    python benchmarks/private_accuracy.py [--out DIR] [--noise 0,2,4,8] [--rules a,b] [--json]

Each cell is a run of `fedge simulate banking77-private` (128 devices, all of them in every round, the
head trained beside the adapter); noise 0 is the same run without privacy. Resumable. Two cells run
side by side. Some 15 minutes per cell on a core: a prompt's gradient passes the whole base, hence fewer
steps and rounds for it.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cells import ROOT, summary_of

RULES: dict[str, list[str]] = {
    "lora-sb": [],
    "prompt": [
        "plan.adapter.method=prompt",
        "plan.adapter.tokens=4",
        "plan.local.max_steps=1",
    ],
}
ROUNDS = {"lora-sb": 12, "prompt": 8}


def cell(rule: str, noise: float, out: Path) -> dict[str, object]:
    """One run's row; run now unless it is there."""
    rounds = ROUNDS[rule]
    folder = out / f"{rule}-{noise:g}-{rounds}"
    settings = [f"plan.rounds={rounds}", *RULES[rule]]
    if noise:
        settings.append(f"plan.privacy.noise_multiplier={noise}")
    else:
        settings.append("plan.privacy.mechanism=none")
    found = summary_of("banking77-private", folder, settings)
    return {
        "rule": rule,
        "rounds": rounds,
        "noise_multiplier": noise,
        "epsilon": found["epsilon"],
        "delta": found["delta"],
        "accuracy": found["accuracy_federated"],
        "upload_bytes": found["upload_bytes_per_client_round"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "private-accuracy")
    parser.add_argument("--noise", default="0,2,4,8")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    wanted = [
        (rule, float(z)) for rule in arguments.rules.split(",") for z in arguments.noise.split(",")
    ]
    first = cell(*wanted[0], arguments.out)  # alone: it also builds the base
    with ThreadPoolExecutor(2) as pool:
        rest = list(pool.map(lambda each: cell(*each, arguments.out), wanted[1:]))
    rows = [first, *rest]
    if arguments.json:
        print(json.dumps(rows))
        return
    print("BANKING77, 128 devices, all in every round, delta 1e-6, test accuracy")
    print("| rule | rounds | noise z | epsilon | accuracy |")
    print("|---|---|---|---|---|")
    for row in rows:
        spent = "no privacy" if row["epsilon"] is None else f"{row['epsilon']:.2f}"
        print(
            f"| {row['rule']} | {row['rounds']} | {row['noise_multiplier']:g} | {spent} | {row['accuracy']:.3f} |"
        )


if __name__ == "__main__":
    main()
