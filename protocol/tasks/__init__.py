"""What can be learnt: the ``[task]`` of a plan, one module per kind; their union is the registry.

A kind has a module of the same name in every role where it differs: here settings, head and metrics;
``client.tasks`` reads rows and scores answers, ``base_model.tasks`` has the losses, ``edge_runtime.tasks``
the answers of a device. (docs/adr/0047)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Discriminator, Tag

from protocol.tasks.classification import Classification
from protocol.tasks.regression import Regression

TASKS: dict[str, type[Classification] | type[Regression]] = {
    task.KIND: task for task in (Classification, Regression)
}


def _kind_of(task: object) -> str:
    """The kind that a table names; the first one where it names none."""
    kind = task.get("kind") if isinstance(task, dict) else getattr(task, "kind", None)
    return Classification.KIND if kind is None else str(kind)


def quality_in(metrics: Mapping[str, float]) -> str:
    """What summed metrics say of quality, for people; empty where they say nothing."""
    for task in TASKS.values():
        try:
            value = task.quality_of(metrics)
        except KeyError:  # of another task
            continue
        return "" if value is None else task.QUALITY.said(value)
    return ""


Task = Annotated[
    Annotated[Classification, Tag(Classification.KIND)]
    | Annotated[Regression, Tag(Regression.KIND)],
    Discriminator(_kind_of),
]
