"""What a release that keeps a share of its numbers answers, and how many bytes of it travel to a device. (P-5.6)

    python benchmarks/magnitude.py [--out runs/magnitude] [--seeds 3] [--method lora] [--json]

A run of `fedge simulate demo` per seed, without yardsticks; a finished one is not run again. Training knows
nothing of `release.keep`, so each run's last adapter is cut down to every share, and answers the run's test rows
in its published form. Beside the rule of P-5.6 there are two others: the head's numbers cut down like the rest,
and one threshold for all tensors but the head's in the place of a share of each. Bytes are of the
`.onnx_adapter`, of its bitmap form (P-9.10) where that is shorter, and of both under zlib.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from cells import ROOT, summary_of

sys.path.remove(str(Path(__file__).resolve().parent))  # its `audit` is none of the package

from edge_runtime.edge_adapter import write_edge_adapter
from protocol.bitmap_form import encode_bitmap
from protocol.layout import Tensors
from protocol.magnitude import largest_alone, pruned
from protocol.peft_format import Published, to_edge
from protocol.plan import plan_from_text
from protocol.recipe import Recipe
from protocol.step.checkpoint import decode_checkpoint
from simulations.evaluation import Evaluator

SHARES = (1.0, 0.75, 0.5, 0.25, 0.1)
ALONE = ["yardsticks.pooled=false", "yardsticks.alone=0"]
Cut = Callable[[Recipe, Tensors, float], Tensors]


def by_tensor(recipe: Recipe, plain: Tensors, keep: float) -> Tensors:
    """The rule of P-5.6."""
    return pruned(plain, [spec.name for spec in recipe.prunable], keep)


def head_too(recipe: Recipe, plain: Tensors, keep: float) -> Tensors:
    """The same of the head."""
    return pruned(plain, list(plain), keep)


def together(recipe: Recipe, plain: Tensors, keep: float) -> Tensors:
    """The largest of all tensors but the head's, wherever they are."""
    names = [spec.name for spec in recipe.prunable]
    kept = largest_alone(np.concatenate([plain[name].reshape(-1) for name in names]), keep)
    parts = np.split(kept, np.cumsum([plain[name].size for name in names])[:-1])
    return plain | {
        name: part.reshape(plain[name].shape) for name, part in zip(names, parts, strict=True)
    }


RULES: dict[str, Cut] = {
    "a share of each tensor": by_tensor,
    "of the head's too": head_too,
    "one threshold": together,
}


def measured(run: Path, summary: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """By rule and share: accuracy, and :func:`sizes`."""
    plan = plan_from_text((run / "plan.json").read_text("utf-8"), source="plan.json")
    evaluator = Evaluator(plan, Path(summary["base"]), run / "test.jsonl")
    recipe = evaluator.worker.recipe
    path = run / "rounds" / f"{plan.rounds:04d}" / "checkpoint.safetensors"
    state, _ = decode_checkpoint(path.read_bytes(), source=path.name)
    plain = recipe.published(state.adapter)
    table: dict[str, list[dict[str, float]]] = {}
    for rule, cut in RULES.items():
        for keep in SHARES:
            tensors = cut(recipe, plain, keep)
            row = {"keep": keep, **sizes(recipe, tensors)}
            row["accuracy"] = evaluator.measure(recipe.resumed(tensors)).quality
            table.setdefault(rule, []).append(row)
    return table


def sizes(recipe: Recipe, tensors: Tensors) -> dict[str, float]:
    """In bytes: the file that devices take, what travels of it, and file and bitmap form under zlib."""
    slots = to_edge(tensors, published=Published.by(recipe.plan.adapter))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.onnx_adapter"
        write_edge_adapter(slots, path)
        data = path.read_bytes()
    form = encode_bitmap(data)
    return {
        "file": len(data),
        "sent": min(len(data), len(form)),
        "zlib": len(zlib.compress(data, 9)),
        "form under zlib": len(zlib.compress(form, 9)),
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "magnitude")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--method", default="lora")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    runs = []
    for seed in range(arguments.seeds):
        out = arguments.out.absolute() / f"{arguments.method}-{seed}"
        settings = [f"plan.adapter.method={arguments.method}", f"plan.seed={seed}", *ALONE]
        runs.append(measured(out, summary_of("demo", out, settings)))
    if arguments.json:
        print(json.dumps(runs))
        return
    for rule in RULES:
        print(f"{rule}:")
        for rows in zip(*(run[rule] for run in runs), strict=True):
            accuracies = [row["accuracy"] for row in rows]
            print(
                f"  keep {rows[0]['keep']:<5g} accuracy {statistics.mean(accuracies):.3f} "
                f"({min(accuracies):.3f} to {max(accuracies):.3f}), bytes {rows[0]['file']:.0f}, "
                f"sent {statistics.mean(row['sent'] for row in rows):.0f}, "
                f"zlib {statistics.mean(row['zlib'] for row in rows):.0f}, "
                f"of the form {statistics.mean(row['form under zlib'] for row in rows):.0f}"
            )


if __name__ == "__main__":
    main()
