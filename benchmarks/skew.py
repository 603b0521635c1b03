"""BANKING77 at Dirichlet 0.01: FedIT, FFA-LoRA and alternating LoRA, three seeds, one table.

    python benchmarks/skew.py [--out runs/skew] [--rounds N] [--json]

Each cell is a run of `fedge simulate banking77-skew`; a cell that is finished is not run again, one
that was stopped is resumed, so the command can be stopped and repeated at will. Two cells run side
by side, each on one core, because two processes of one thread train more tokens a second than one
process of two.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cells import ROOT, summary_of

RULES = ("mean", "first", "alternating")
SEEDS = (0, 1, 2)


def run_cell(rule: str, seed: int, out: Path, extra: list[str]) -> dict[str, object]:
    folder = out / f"{rule}-{seed}"
    settings = [f"plan.rule.name={rule}", f"plan.seed={seed}"]
    return summary_of("banking77-skew", folder, [*settings, *extra])


def table(cells: dict[str, list[dict[str, object]]]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for rule, runs in cells.items():
        scores = [float(str(run["accuracy_federated"])) for run in runs]
        rows.append(
            {
                "rule": rule,
                "mean": statistics.mean(scores),
                "spread": statistics.stdev(scores) if len(scores) > 1 else 0.0,
                "scores": scores,
                "upload_bytes_per_client_round": runs[-1]["upload_bytes_per_client_round"],
                "seconds": sum(float(str(run["seconds"])) for run in runs),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "skew")
    parser.add_argument("--rounds", type=int, help="instead of the experiment's")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    extra = [f"plan.rounds={arguments.rounds}"] if arguments.rounds else []
    arguments.out.mkdir(parents=True, exist_ok=True)
    first = run_cell(RULES[0], SEEDS[0], arguments.out, extra)  # alone: it also builds the base
    with ThreadPoolExecutor(2) as pool:
        jobs = {
            rule: [pool.submit(run_cell, rule, seed, arguments.out, extra) for seed in SEEDS]
            for rule in RULES
        }
        cells = {rule: [job.result() for job in row] for rule, row in jobs.items()}
    rows = table(cells)
    (arguments.out / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"BANKING77, Dirichlet 0.01, {first['rounds']} rounds, test accuracy over seeds {SEEDS}")
    print("| rule | mean | spread (sd) | seeds | upload, bytes per client and round |")
    print("|---|---|---|---|---|")
    for row in rows:
        seeds = ", ".join(f"{score:.3f}" for score in row["scores"])  # type: ignore[attr-defined]
        print(
            f"| {row['rule']} | {row['mean']:.3f} | {row['spread']:.3f} | {seeds} "
            f"| {row['upload_bytes_per_client_round']:,} |"
        )


if __name__ == "__main__":
    main()
