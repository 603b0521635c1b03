"""What waiting for slow clients costs: time to an accuracy, with clients to spare beside without.

    python benchmarks/waiting.py [--seeds 0] [--spare 4] [--out runs/waiting] [--json]

`benchmarks/waiting.toml`: thirty devices, a third of them ten times as slow, secret sums of eleven. One run
waits for all eleven that it asks, the other asks as many more as `--spare` says and closes with eleven. Seconds are
those of the runs' virtual clock (a device trains for a minute, or for ten), so they are the same on every
machine. Of each seed: the rounds' seconds, and when either run has reached the accuracy that both reach. A finished run is
not run again. About four minutes a seed on one core.
"""

from __future__ import annotations

import argparse
import json
from itertools import accumulate
from pathlib import Path
from typing import Any

from cells import ROOT, summary_of

EXPERIMENT = ROOT / "benchmarks" / "waiting.toml"


def course(seed: int, spare: int, out: Path) -> list[tuple[float, float, int]]:
    """After each round: virtual seconds since the run began, test accuracy, clients not waited for."""
    folder = out / f"seed{seed}-spare{spare}"
    summary_of(str(EXPERIMENT), folder, [f"plan.seed={seed}", f"plan.cohort.spare={spare}"])
    paths = sorted(folder.glob("rounds/[0-9]*/record.json"))[1:]
    records: list[dict[str, Any]] = [json.loads(path.read_text()) for path in paths]
    measured = json.loads((folder / "evaluations.json").read_text())["test"]
    accuracies = {entry["round"]: float(entry["accuracy"]) for entry in measured}
    failed = sorted(folder.glob("rounds/[0-9]*.attempt*.json"))
    assert not failed, failed  # their seconds would be in no record
    return [
        (
            seconds,
            accuracies[record["round"]],
            sum(drop["reason"] == "unawaited" for drop in record["dropped"]),
        )
        for record, seconds in zip(
            records, accumulate(record["seconds"] for record in records), strict=True
        )
    ]


def compared(seed: int, spare: int, out: Path) -> dict[str, Any]:
    """Both runs of a seed."""
    waiting, closing = course(seed, 0, out), course(seed, spare, out)
    target = min(max(accuracy for _, accuracy, _ in run) for run in (waiting, closing))
    reached = [
        next(
            (seconds, number)
            for number, (seconds, accuracy, _) in enumerate(run, 1)
            if accuracy >= target
        )
        for run in (waiting, closing)
    ]
    return {
        "seed": seed,
        "accuracy": target,
        "waiting_s": reached[0][0],
        "waiting_rounds": reached[0][1],
        "spare_s": reached[1][0],
        "spare_rounds": reached[1][1],
        "ratio": reached[1][0] / reached[0][0],
        "waiting_last": waiting[-1][1],
        "spare_last": closing[-1][1],
        "waiting_all_s": waiting[-1][0],
        "spare_all_s": closing[-1][0],
        "unawaited": sum(count for _, _, count in closing),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--spare", type=int, default=4)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "waiting")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [
        compared(int(seed), arguments.spare, arguments.out) for seed in arguments.seeds.split(",")
    ]
    if arguments.json:
        print(json.dumps(rows))
        return
    print(
        "| seed | accuracy | waiting: minutes (rounds) | spare: minutes (rounds) | ratio | not waited for |"
    )
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['seed']} | {row['accuracy']:.3f} | {row['waiting_s'] / 60:.0f} ({row['waiting_rounds']}) | "
            f"{row['spare_s'] / 60:.0f} ({row['spare_rounds']}) | {row['ratio']:.2f} | {row['unawaited']} |"
        )
    waiting, spare = (sum(row[key] for row in rows) for key in ("waiting_s", "spare_s"))
    print(f"| all | | {waiting / 60:.0f} | {spare / 60:.0f} | {spare / waiting:.2f} | |")


if __name__ == "__main__":
    main()
