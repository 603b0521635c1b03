"""``scores.json`` of a run: how the last measured round and both yardsticks do on test rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from protocol.errors import PlanError
from simulations.files import read_json, write_json
from simulations.tasks import Scores, task_named

SCORES = "scores.json"
Json = dict[str, Any]


def verify_finite(scores: Scores, whose: str) -> None:
    """Raises PlanError for answers that are infinite or no numbers: nothing that follows means anything."""
    if not scores.is_finite:
        raise PlanError(
            f"the answers of the model `{whose}` on the test rows are infinite or no numbers: its training "
            "has diverged",
            "lower local.learning_rate or server.learning_rate, and run it in another folder",
        )


def save_scores(run: Path, whose: str, scores: Scores, client: str = "") -> None:
    """Keep scores of ``federated``, ``pooled`` or, with a client, ``alone``; the file is replaced whole.

    Raises PlanError as :func:`verify_finite` does.
    """
    verify_finite(scores, " ".join(filter(None, (whose, client))))
    kept: Json = read_json(run / SCORES, {})
    if client:
        kept.setdefault(whose, {})[client] = scores.to_list()
    else:
        kept[whose] = scores.to_list()
    write_json(run / SCORES, kept)


def load_scores(run: Path, kind: str) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """(federated and pooled, by name; alone, by client), as far as they are there; ``kind``: of the task."""
    task = task_named(kind)
    kept: Json = read_json(run / SCORES, {})
    alone = kept.pop("alone", {})
    return (
        {name: task.scores_from(rows) for name, rows in kept.items()},
        {client: task.scores_from(rows) for client, rows in alone.items()},
    )
