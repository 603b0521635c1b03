"""What a resident trainer saves: seconds from a message to the end of its first training step.

    python benchmarks/resident.py [--rows 200] [--repeats 5] [--json]

Flower starts a process for every message. Here too, each message is a new process that runs our ClientApp
on a real message (without Flower's own transport, which both designs have): once with the base
opened in that process, once handed to the site's trainer. In turn, on rows of the demo and
MiniLM in int4. Reported is the median of second and later rounds over the median of fresh processes,
with the smallest and largest ratio of a pair. Aim: 0.30.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
MARK = "FEDGE_BENCH_FIRST_STEP"  # names the file for the moment of the first step


def mark_first_step() -> None:
    """From now on training in this process notes when its first step is done."""
    import client.worker as worker

    def train(*arguments: Any, on_step: Any = None, **named: Any) -> Any:
        def told(step: int) -> None:
            if step == 1:
                Path(os.environ[MARK]).write_text(repr(time.monotonic()))
            if on_step is not None:
                on_step(step)

        return plain(*arguments, on_step=told, **named)

    plain, worker.train = worker.train, train  # type: ignore[assignment]


def message(folder: Path, number: int, trainer: Path | None) -> None:
    """What the process of one message does: receive, train or have trained, reply."""
    import numpy as np
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from client import trainer_link
    from client.app import app

    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    instruction = json.loads((folder / "instruction.json").read_text()) | {"round": number}
    adapter = np.load(folder / "adapter.npy")
    content = RecordDict(
        {
            "instruction": ConfigRecord(instruction),
            "adapter": ArrayRecord({"adapter": Array(adapter)}),
        }
    )
    node = json.loads((folder / "node.json").read_text())
    if trainer is None:
        mark_first_step()
    else:
        node["trainer"] = str(trainer)
        trainer_link._spawned = lambda path, *_: start_trainer(path)  # type: ignore[assignment]
    reply = app(Message(content, 2, "train.mask"), Context(1, 2, node, RecordDict(), {}))
    if list(reply.content) != ["masked"]:
        raise SystemExit(f"refused: {reply.content}")


def start_trainer(path: Path) -> subprocess.Popen[bytes]:
    """The trainer with the mark."""
    return subprocess.Popen(
        [sys.executable, __file__, "--serve", str(path)],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def serve(path: Path) -> None:
    import threading

    from client.trainer import Trainer

    threading.Thread(target=mark_first_step).start()  # it listens at once, as the real one does
    Trainer(path, idle=600).serve()


def prepare(folder: Path, count: int) -> None:
    """Base, plan, rows, and the coordinator's instruction and adapter."""
    import numpy as np

    from base_model.store import read_manifest
    from protocol.encoding import vector_digest
    from protocol.recipe import Recipe, initial_adapter
    from simulations.base_cache import ready_base
    from simulations.experiment import load_experiment
    from simulations.generators import home_commands
    from simulations.progress import NoProgress

    settings = ["plan.secrecy.exchange=plain", "plan.local.max_steps=4"]
    experiment = load_experiment(ROOT / "simulations" / "experiments" / "demo.toml", settings)
    base = ready_base(experiment.base, folder=ROOT, cache=folder / "bases", progress=NoProgress())
    manifest = read_manifest(base)
    everything = home_commands(0).train
    labels = sorted({row["label"] for row in everything})
    rows = [everything[number % len(everything)] for number in range(count)]
    plan = experiment.plan_for(fingerprint=manifest.fingerprint, labels=labels)
    (folder / "plan.json").write_text(plan.model_dump_json())
    lines = [json.dumps({"text": row["text"], "label": row["label"]}) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    layout = Recipe(plan=plan, manifest=manifest).layout
    adapter = layout.flatten(initial_adapter(layout, seed=0))
    np.save(folder / "adapter.npy", adapter)
    instruction = {
        "attempt": 1,
        "plan_digest": plan.digest,
        "base": manifest.fingerprint,
        "adapter_digest": vector_digest(adapter),
        "evaluate": False,
    }
    (folder / "instruction.json").write_text(json.dumps(instruction))
    node = {
        "client-id": "site",
        "plan": str(folder / "plan.json"),
        "base": str(base),
        "data-path": str(folder / "rows.jsonl"),
        "threads": 1,
    }
    (folder / "node.json").write_text(json.dumps(node))


def seconds(folder: Path, number: int, trainer: Path | None) -> float:
    """From the start of a message's process to the end of its first step."""
    command = [sys.executable, __file__, "--message", str(folder), "--number", str(number)]
    if trainer is not None:
        command += ["--trainer", str(trainer)]
    started = time.monotonic()
    subprocess.run(command, check=True, cwd=folder)
    return float(Path(os.environ[MARK]).read_text()) - started


def measure(folder: Path, repeats: int, count: int) -> dict[str, Any]:
    from client import trainer_link

    prepare(folder, count)
    trainer = folder / "t" / "socket"
    seconds(folder, 1, None)  # the disk's cache is warm for both
    first = seconds(folder, 1, trainer)
    try:
        pairs = [
            (seconds(folder, number, None), seconds(folder, number, trainer))
            for number in (2 + repeat % 3 for repeat in range(repeats))
        ]
    finally:
        trainer_link.stop(trainer)
    ratios = [resident / fresh for fresh, resident in pairs]
    fresh, resident = (statistics.median(each) for each in zip(*pairs, strict=True))
    return {
        "fresh_seconds": fresh,
        "resident_first_seconds": first,
        "resident_seconds": resident,
        "ratio": resident / fresh,
        "ratios": [min(ratios), max(ratios)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    for hidden in ("--message", "--trainer", "--serve"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.serve)
    if arguments.message:
        return message(arguments.message, arguments.number, arguments.trainer)
    with tempfile.TemporaryDirectory() as name:
        os.environ |= {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            MARK: str(Path(name) / "first-step"),
        }
        found = measure(Path(name), arguments.repeats, arguments.rows)
    if arguments.json:
        print(json.dumps(found))
        return
    low, high = found["ratios"]
    print(f"a process per message that loads the base: {found['fresh_seconds']:.2f} s")
    print(f"a resident trainer, first round: {found['resident_first_seconds']:.2f} s")
    print(f"a resident trainer, later rounds: {found['resident_seconds']:.2f} s")
    print(f"ratio {found['ratio']:.3f} ({low:.3f} to {high:.3f}); aim: at most 0.30")


if __name__ == "__main__":
    main()
