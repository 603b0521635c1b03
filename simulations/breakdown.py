"""A run's test figures by label and by client: where the mean over all rows hides who is served badly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from simulations.files import read_json
from simulations.prepare import LISTED, Prepared
from simulations.scores import load_scores
from simulations.served import SERVED
from simulations.tasks import Scores, task_named

Json = dict[str, Any]


def breakdown(prepared: Prepared) -> tuple[dict[str, Json], dict[str, Json]]:
    """(by label, by client): see :func:`by_label` and :func:`by_client`."""
    task = prepared.plan.task
    together, alone = load_scores(prepared.out, task.kind)
    labels = task_named(task.kind).labels(task)
    listed = read_json(prepared.out / LISTED, {"clients": {}})["clients"]
    clients = by_client(labels, together, alone, listed)
    for name, quality in (read_json(prepared.out / SERVED) or {}).items():
        clients[name]["federated"] = quality
    return by_label(labels, together, alone), clients


def by_label(
    labels: list[str], together: Mapping[str, Scores], alone: Mapping[str, Scores]
) -> dict[str, Json]:
    """Of every label with test rows: how many, and recall, precision, F1 and loss of each training.

    ``federated`` and ``pooled`` where they are there; ``alone`` is the mean over the devices on their own.
    """
    tables = {name: scores.by_label(labels) for name, scores in together.items()}
    single = [scores.by_label(labels) for scores in alone.values()]
    found: dict[str, Json] = {}
    for name, table in tables.items():
        for label, figures in table.items():
            entry = found.setdefault(label, {"rows": figures["rows"]})
            entry[name] = {key: value for key, value in figures.items() if key != "rows"}
    for label, entry in found.items():
        if values := [table[label] for table in single if label in table]:
            entry["alone"] = {
                key: float(np.mean([value[key] for value in values]))
                for key in ("recall", "f1", "loss")
            }
    return found


def by_client(
    labels: list[str],
    together: Mapping[str, Scores],
    alone: Mapping[str, Scores],
    listed: Mapping[str, Json],
) -> dict[str, Json]:
    """Of every client: its value of the column, rows, labels, and the accuracy on test rows with its labels.

    The test rows are nobody's: each label counts as often as it does among the client's own rows
    (docs/adr/0036). ``alone`` is that client's own adapter, where it was trained.
    """
    found: dict[str, Json] = {}
    for name, client in listed.items():
        mix = client.get("label_rows", {})
        own = dict(together) | ({"alone": alone[name]} if name in alone else {})
        figures = {whose: scores.for_mix(labels, mix) for whose, scores in own.items()}
        about = {key: client.get(key) for key in ("value", "rows", "labels")}
        found[name] = about | {key: value for key, value in figures.items() if value is not None}
    return found
