"""How many directions a head needs, and whose: heads alone, on the frozen base's vectors of a run's rows.

    python benchmarks/head_directions.py RUN [--seed 0]

RUN is a folder of `fedge simulate banking77`: its devices' rows, test rows, base and labels are used, its adapter is not. Pooled:
a classifier in the first K singular vectors of the labels' names, of the rows' own, or of drawn directions. Federated: 18
rounds of 10 devices, three passes each, 31 directions at once beside 76 by turns of two and three (P-2.7, docs/adr/0069).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.optimizers import AdamW
from edge_runtime.base import EdgeBase
from edge_runtime.label_vectors import label_vectors, text_vectors

Matrix = npt.NDArray[np.float32]
BATCH, ROUNDS, COHORT, PASSES, LENGTH, RATE = 16, 18, 10, 3, 4.0, 1e-2


def vectors(base: EdgeBase, texts: Sequence[str]) -> Matrix:
    """What the head reads of texts (texts, in): texts of one length together."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    read = text_vectors(base, [texts[at] for at in order])
    return read[np.argsort(order)]


class Rows:
    """Vectors (rows, k) and the index of each label (rows,)."""

    def __init__(self, x: Matrix, y: npt.NDArray[np.int64]) -> None:
        self.x, self.y = x, y

    def along(self, directions: Matrix) -> Rows:
        """Their coordinates."""
        return Rows(self.x @ directions.T, self.y)


def trained(
    weights: Matrix,
    rows: Rows,
    *,
    passes: int,
    free: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> Matrix:
    """(labels, k + 1), the bias last, after AdamW on the cross-entropy; columns that are not ``free`` stay."""
    after, x = weights.copy(), np.c_[rows.x, np.ones(len(rows.x), np.float32)]
    flat = after.reshape(-1)
    optimizer = AdamW(np.full(flat.size, RATE, np.float32), weight_decay=0.0)
    for _ in range(passes):
        order = rng.permutation(len(x))
        for first in range(0, len(order), BATCH):
            at = order[first : first + BATCH]
            logits = x[at] @ after.T
            shares = np.exp(logits - logits.max(1, keepdims=True))
            shares /= shares.sum(1, keepdims=True)
            shares[np.arange(len(at)), rows.y[at]] -= 1
            gradient = (shares.T @ x[at] / len(at)) * free
            optimizer.step(flat, gradient.reshape(-1).astype(np.float32))
    return after


def accuracy(weights: Matrix, rows: Rows) -> float:
    """Share of rows classified rightly."""
    logits = np.c_[rows.x, np.ones(len(rows.x), np.float32)] @ weights.T
    return float((logits.argmax(1) == rows.y).mean())


def begun(names: Matrix, directions: Matrix) -> Matrix:
    """The labels' names in these directions, and biases of zero."""
    size = float((directions[0] ** 2).sum())
    return np.c_[names @ directions.T / size, np.zeros(len(names))].astype(np.float32)


def pooled(kind: Matrix, names: Matrix, rows: Rows, test: Rows, rng: np.random.Generator) -> float:
    """All rows in one place, 20 passes."""
    free = np.ones(len(kind) + 1, np.bool_)
    after = trained(begun(names, kind), rows.along(kind), passes=20, free=free, rng=rng)
    return accuracy(after, test.along(kind))


def federated(
    directions: Matrix,
    turns: int,
    names: Matrix,
    devices: Sequence[Rows],
    test: Rows,
    rng: np.random.Generator,
) -> float:
    """Rounds that share the directions, devices counted alike."""
    weights, own = begun(names, directions), [rows.along(directions) for rows in devices]
    for number in range(ROUNDS):
        free = np.zeros(len(directions) + 1, np.bool_)
        free[number % turns : -1 : turns] = free[-1] = True
        cohort = rng.choice(len(own), COHORT, replace=False)
        updates = [
            trained(weights, own[at], passes=PASSES, free=free, rng=rng) - weights for at in cohort
        ]
        weights = (weights + np.mean(updates, axis=0)).astype(np.float32)
    return accuracy(weights, test.along(directions))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run: Path = arguments.run
    labels = json.loads((run / "plan.json").read_text())["task"]["labels"]
    base = EdgeBase.open(Path(json.loads((run / "summary.json").read_text())["base"]), threads=1)

    def read(path: Path) -> Rows:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        y = np.array([labels.index(line["label"]) for line in lines])
        return Rows(vectors(base, [line["text"] for line in lines]), y)

    devices, test = (
        [read(p) for p in sorted((run / "clients").glob("client-????.jsonl"))],
        read(run / "test.jsonl"),
    )
    rows = Rows(np.concatenate([d.x for d in devices]), np.concatenate([d.y for d in devices]))
    centred = label_vectors(base, labels)
    centred = centred - centred.mean(0)
    names = LENGTH * centred / np.linalg.norm(centred, axis=1, keepdims=True)
    width, rng = names.shape[1], np.random.default_rng(arguments.seed)
    of_names = np.linalg.svd(names, full_matrices=False)[2]
    of_rows = np.linalg.svd(rows.x[:4000] - rows.x.mean(0), full_matrices=False)[2]
    drawn = np.linalg.qr(rng.normal(size=(width, width)))[0].T

    def first(count: int, vectors: Matrix) -> Matrix:
        return (vectors[:count] * math.sqrt(width / count)).astype(np.float32)

    print(f"pooled, all {width}: {pooled(first(width, drawn), names, rows, test, rng):.3f}")
    for count in (16, 24, 31, 48, 76):
        figures = [
            pooled(first(count, kind), names, rows, test, rng)
            for kind in (of_names, of_rows, drawn)
        ]
        print(
            f"pooled, {count}: of names {figures[0]:.3f}, of rows {figures[1]:.3f}, drawn {figures[2]:.3f}"
        )
    for count, turns in ((31, 1), (76, 2), (76, 3), (76, 4)):
        figure = federated(first(count, of_names), turns, names, devices, test, rng)
        sent = len(labels) * (-(-count // turns) + 1)
        print(
            f"federated, {count} of names by turns of {turns}, at most {sent:,} numbers up: {figure:.3f}"
        )


if __name__ == "__main__":
    main()
