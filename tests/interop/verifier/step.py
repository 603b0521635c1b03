"""P-4.7, P-6.14: from the groups' means to the next adapter and the optimiser's moments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .basics import Reals, Tensors, Vector, halved
from .documents import Documents


@dataclass
class State:
    """The adapter's tensors and both moments, each over the full adapter, all by tensor and flat."""

    adapter: Tensors
    first: Tensors
    second: Tensors


def combined(
    means: list[Vector], counts: list[int], secrecy: dict[str, Any]
) -> tuple[Vector, list[bool]]:
    """(the update, which groups are kept)."""
    if len(means) == 1:
        return means[0], [True]
    points = [mean.astype(np.float64) for mean in means]
    if "combination" in secrecy:
        assert secrecy["combination"] == "trimmed-mean"
        return trimmed(points, secrecy["trim"]).astype(np.float32), [True] * len(points)
    assert "trim" not in secrecy
    middle = median(points)
    far = [distance(point, middle) for point in points]
    kept = [one <= 3 * float(median([np.float64(each) for each in far])) for one in far]
    rest = [point for point, good in zip(points, kept, strict=True) if good]
    weights = [n for n, good in zip(counts, kept, strict=True) if good]
    largest = max(float(np.abs(point).max()) for point in rest)
    e = 1e-9 * largest if largest else 1e-9
    c = average(rest, [float(n) for n in weights])
    for _ in range(64):
        near = [math.sqrt(halved((p - c) * (p - c)) + e * e) for p in rest]
        c = average(rest, [n / d for n, d in zip(weights, near, strict=True)])
    return c.astype(np.float32), kept


def trimmed(points: list[Reals], trim: int) -> Reals:
    ends = min(trim, (len(points) - 1) // 2)
    middle = np.sort(np.stack(points), axis=0)[ends : len(points) - ends]
    return average(list(middle), [1.0] * len(middle))


def average(points: list[Reals], weights: list[float]) -> Reals:
    total, weight = np.zeros_like(points[0]), 0.0
    for p, w in zip(points, weights, strict=True):
        total, weight = total + p * w, weight + w
    return total / weight


def median(values: list[Any]) -> Any:
    ordered = np.sort(np.stack(values), axis=0)
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2


def distance(one: Reals, other: Reals) -> float:
    return math.sqrt(halved((one - other) * (one - other)))


def stepped(documents: Documents, before: State, number: int, mean: Vector) -> State:
    """The state after round ``number``."""
    after = State(dict(before.adapter), dict(before.first), dict(before.second))
    at = 0
    for name in documents.trained(number):
        size = len(before.adapter[name])
        moments = before.first[name], before.second[name]
        step, u, v = optimised(documents.plan["server"], mean[at : at + size], *moments)
        after.adapter[name] = before.adapter[name] + step
        after.first[name], after.second[name] = u, v
        at += size
    assert at == len(mean)
    for start, member in documents.of_members().items():
        if member.plan["adapter"]["method"] == "adalora":
            own = {
                n.removeprefix(start): x for n, x in after.adapter.items() if n.startswith(start)
            }
            terms = fewer_terms(member, own, number)
            after.adapter |= {start + name: x for name, x in terms.items()}
    if documents.plan["adapter"]["method"] == "sparse":
        after.adapter |= chosen_rows(documents, after.adapter)
    return after


def chosen_rows(documents: Documents, adapter: Tensors) -> Tensors:
    """P-4.7: every B that is no selection becomes that of its largest rows, its A zeros."""
    changed: Tensors = {}
    for name in adapter:
        if not name.endswith(".lora_B"):
            continue
        out, r = documents.shapes[name]
        scout = adapter[name].reshape(out, r).astype(np.float64)
        norms = [(-halved(row * row), at) for at, row in enumerate(scout)]
        rows = sorted(at for _, at in sorted(norms)[:r])
        chosen = np.zeros((out, r), "<f4")
        for column, row in enumerate(rows):
            chosen[row, column] = 1
        if not np.array_equal(chosen, adapter[name].reshape(out, r)):
            factor = name.removesuffix("lora_B") + "lora_A"
            changed |= {name: chosen.reshape(-1), factor: np.zeros_like(adapter[factor])}
    return changed


def fewer_terms(documents: Documents, adapter: Tensors, number: int) -> Tensors:
    """P-4.7: every `lora_E`, with zeros where terms are taken out."""
    settings, rounds = documents.plan["adapter"], documents.plan["rounds"]
    r, q, e = settings["rank"], settings["target_rank"], math.ceil(2 * rounds / 3)
    names = sorted((name for name in adapter if name.endswith(".lora_E")), key=str.encode)
    terms = []
    for name in names:
        path = name.removesuffix("lora_E")
        a = adapter[path + "lora_A"].reshape(r, -1).astype(np.float64)
        b = adapter[path + "lora_B"].reshape(-1, r).astype(np.float64)
        for i in range(r):
            square = float(adapter[name][i]) ** 2
            norms = halved(a[i] * a[i]) * halved(b[:, i] * b[:, i])
            terms.append((-square * norms, name, i))
    count = len(names)
    left = count * q + count * (r - q) * (e - min(number, e)) ** 3 // e**3
    stay = {(name, i) for _, name, i in sorted(terms)[:left]}
    return {
        name: np.array([x if (name, i) in stay else 0 for i, x in enumerate(adapter[name])], "<f4")
        for name in names
    }


def optimised(
    server: dict[str, Any], mean: Vector, first: Vector, second: Vector
) -> tuple[Vector, Vector, Vector]:
    """(step, u, v), each rounded to float32."""
    rate, b1, b2 = server["learning_rate"], server["beta1"], server["beta2"]
    m, u, v = (each.astype(np.float64) for each in (mean, first, second))
    if server["optimizer"] == "fedavg":
        step = m if rate == 1 else m * rate
    elif server["optimizer"] == "fedavgm":
        u = b1 * u + m
        step = rate * u
    else:
        u = b1 * u + (1 - b1) * m
        square = m * m
        if server["optimizer"] == "fedadam":
            v = b2 * v + (1 - b2) * square
        else:
            assert server["optimizer"] == "fedyogi"
            v = v - ((1 - b2) * square) * np.sign(v - square)
        step = (rate * u) / (np.sqrt(v) + server["tau"])
    return step.astype(np.float32), u.astype(np.float32), v.astype(np.float32)
