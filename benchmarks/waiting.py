"""What waiting for slow clients costs: time to an accuracy, with clients to spare beside without.

    python benchmarks/waiting.py [--seeds 0] [--spare 4] [--late 0] [--out runs/waiting] [--json]

`benchmarks/waiting.toml`: thirty devices, a third of them ten times as slow, secret sums of eleven. One run
waits for all eleven that it asks, the other asks as many more as `--spare` says and closes with eleven, and
takes what came too late up to `--late` rounds later. Seconds are those of the runs' virtual clock (a device
trains for a minute, or for ten), so they are the same on every machine. Of each seed: the rounds' seconds, when
either run has reached the accuracy that both reach, and the slow devices' share of what the second one
summed. A finished run is not run again. About four minutes a seed on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

from cells import ROOT, summary_of

sys.path.insert(0, str(ROOT))

from simulations.clients import client_name
from simulations.experiment import load_experiment
from simulations.faults import slow_clients

EXPERIMENT = ROOT / "benchmarks" / "waiting.toml"
CLIENTS = 30


def course(
    seed: int, spare: int, late: int, rule: str, out: Path
) -> tuple[list[tuple[float, float, int]], float]:
    """After each round: virtual seconds since the run began, test accuracy, clients not waited for.

    And the share of all updates in sums that are of slow clients.
    """
    folder = out / f"seed{seed}-spare{spare}-late{late}-{rule}"
    settings = [f"plan.seed={seed}", f"plan.cohort.spare={spare}", f"plan.rule.name={rule}"]
    if rule == "mean":  # momentum goes on in the direction of old updates
        settings.append("plan.server.optimizer=fedavg")
    settings += [f"plan.cohort.late_rounds={late}"] if late else []
    summary_of(str(EXPERIMENT), folder, settings)
    paths = sorted(folder.glob("rounds/[0-9]*/record.json"))[1:]
    records: list[dict[str, Any]] = [json.loads(path.read_text()) for path in paths]
    measured = json.loads((folder / "evaluations.json").read_text())["test"]
    accuracies = {entry["round"]: float(entry["accuracy"]) for entry in measured}
    failed = sorted(folder.glob("rounds/[0-9]*.attempt*.json"))
    assert not failed, failed  # their seconds would be in no record
    faults = load_experiment(EXPERIMENT, settings).faults
    names = [client_name(number) for number in range(CLIENTS)]
    slow = slow_clients(names, share=faults.slow, seed=seed)
    used = [name for record in records for name in record["used"]]
    rounds = [
        (
            seconds,
            accuracies[record["round"]],
            sum(drop["reason"] == "unawaited" for drop in record["dropped"]),
        )
        for record, seconds in zip(
            records, accumulate(record["seconds"] for record in records), strict=True
        )
    ]
    return rounds, sum(name in slow for name in used) / len(used)


def compared(seed: int, spare: int, late: int, out: Path) -> dict[str, Any]:
    """Both runs of a seed."""
    rule = "mean" if late else "alternating"  # late updates are for rounds that all train the same
    waiting, _ = course(seed, 0, 0, rule, out)
    closing, slow = course(seed, spare, late, rule, out)
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
        "slow_share": slow,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--spare", type=int, default=4)
    parser.add_argument("--late", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "waiting")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [
        compared(int(seed), arguments.spare, arguments.late, arguments.out)
        for seed in arguments.seeds.split(",")
    ]
    if arguments.json:
        print(json.dumps(rows))
        return
    print(
        "| seed | accuracy | waiting: minutes (rounds) | spare: minutes (rounds) | ratio | not waited for "
        "| of slow ones |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['seed']} | {row['accuracy']:.3f} | {row['waiting_s'] / 60:.0f} ({row['waiting_rounds']}) | "
            f"{row['spare_s'] / 60:.0f} ({row['spare_rounds']}) | {row['ratio']:.2f} | {row['unawaited']} "
            f"| {row['slow_share']:.2f} |"
        )
    waiting, spare = (sum(row[key] for row in rows) for key in ("waiting_s", "spare_s"))
    print(f"| all | | {waiting / 60:.0f} | {spare / 60:.0f} | {spare / waiting:.2f} | | |")


if __name__ == "__main__":
    main()
