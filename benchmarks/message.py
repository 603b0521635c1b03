"""From a message's arrival at a site to the end of its first training step, beside b83db7f's resident trainer.

    git worktree add ../before b83db7f
    python benchmarks/message.py [--before ../before] [--rows 200] [--repeats 5] [--json]

As a site does it: a process that has loaded what ``client.node`` loads forks for every message, and the fork runs
our ClientApp on a real message (without Flower's own transport): it verifies the base, opens its program, encodes
the rows of the demo, trains. MiniLM int4, one thread. ``over_trainer``: the median over that of b83db7f's
`benchmarks/resident.py` whose process keeps base and rows from the first message on. Aim: 1.0.
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


def prepare(folder: Path, count: int) -> None:
    """Base, plan, rows, and the coordinator's instruction and adapter."""
    import numpy as np

    from base_model.verify import read_manifest
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


def answer(folder: Path, number: int) -> None:
    """What the fork for one message does; writes the moment of its first step's end."""
    import numpy as np
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    import client.worker as worker
    from client.app import app

    def train(*arguments: Any, on_step: Any = None, **named: Any) -> Any:
        def note(step: int) -> None:
            if step == 1:
                (folder / "first-step").write_text(repr(time.monotonic()))

        return plain(*arguments, on_step=note, **named)

    plain, worker.train = worker.train, train  # type: ignore[assignment]
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
    reply = app(Message(content, 2, "train.mask"), Context(1, 2, node, RecordDict(), {}))
    if list(reply.content) != ["masked"]:
        raise SystemExit(f"refused: {reply.content}")


def seconds(folder: Path, number: int) -> float:
    """From the fork to the end of the first step."""
    started = time.monotonic()
    if not (child := os.fork()):
        code = 1
        try:
            answer(folder, number)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit("a message was not answered")
    return float((folder / "first-step").read_text()) - started


def trainer_seconds(before: Path, repeats: int) -> float:
    """The other tree's later rounds, ."""
    command = [sys.executable, str(before / "benchmarks/resident.py"), "--json"]
    done = subprocess.run(
        [*command, "--repeats", str(repeats)],
        cwd=before,
        env=os.environ | {"PYTHONPATH": str(before)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{before}: {done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["resident_seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--before", type=Path, help="a checkout of b83db7f")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if arguments.prepare:
        return prepare(arguments.prepare, arguments.rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, __file__, "--prepare", name, "--rows", str(arguments.rows)]
        subprocess.run(command, check=True)  # what builds a base has threads, and must not fork
        from client.node import _load_app

        _load_app()
        seconds(folder, 1)  # writes the program, warms the disk's cache
        taken = [seconds(folder, 2 + repeat % 3) for repeat in range(arguments.repeats)]
    result = {"seconds": statistics.median(taken), "range": [min(taken), max(taken)]}
    if arguments.before:
        theirs = trainer_seconds(arguments.before.resolve(), arguments.repeats)
        result |= {"trainer_seconds": theirs, "over_trainer": result["seconds"] / theirs}
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"from a message to the end of its first step: {result['seconds']:.2f} s")
    if arguments.before:
        print(f"with b83db7f's resident trainer: {result['trainer_seconds']:.2f} s")
        print(f"ratio {result['over_trainer']:.3f}; aim: at most 1.0")


if __name__ == "__main__":
    main()
