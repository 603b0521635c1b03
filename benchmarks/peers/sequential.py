"""Plain peft, one client after the other in one process: what a researcher writes in an afternoon.

    python benchmarks/peers/sequential.py RUN OUT

RUN: a run folder of ``fedge simulate`` that has the work; OUT: a JSON file with accuracy by round.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from work import accuracy, load_state, model_and_tokenizer, read_work, train_epoch, trained_state


def main(run: Path, out: Path) -> None:
    work = read_work(run)
    model, tokenizer = model_and_tokenizer(work)
    state = trained_state(model)
    started, rounds = time.perf_counter(), []
    for number in range(1, work.rounds + 1):
        total = {name: torch.zeros_like(value) for name, value in state.items()}
        for client, rows in enumerate(work.clients):
            load_state(model, state)
            train_epoch(model, tokenizer, rows, work, seed=1000 * number + client)
            for name, value in trained_state(model).items():
                total[name] += value / len(work.clients)
        state = total
        load_state(model, state)
        seconds = time.perf_counter() - started
        rounds.append(
            {
                "seconds": seconds,
                "accuracy": accuracy(model, tokenizer, work.test, work),
                "at": time.time(),
            }
        )
    size = 4 * sum(value.numel() for value in state.values())
    out.write_text(json.dumps({"rounds": rounds, "bytes_up": size, "bytes_down": size}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
