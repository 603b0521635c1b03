"""What kinds of model can be a base, and what is particular about each family.

A family is listed when its tests pass; a task kind that is only planned is listed as refused, so
that the seam and the error are in one place.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import ArtefactError, PlanError


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """An encoder family by Hugging Face's ``model_type``.

    ``prefix``: attribute of the encoder in the classification model. ``position_offset``:
    positions that the embedding table keeps for itself (RoBERTa counts from pad + 1).
    """

    model_type: str
    prefix: str
    position_offset: int = 0
    default_pooling: str = "pooler"


FAMILIES = {
    family.model_type: family
    for family in (
        Family(model_type="bert", prefix="bert"),
        Family(model_type="distilbert", prefix="distilbert", default_pooling="cls"),
        Family(model_type="roberta", prefix="roberta", position_offset=2, default_pooling="cls"),
        Family(
            model_type="xlm-roberta", prefix="roberta", position_offset=2, default_pooling="cls"
        ),
    )
}

TASKS = {
    "sequence-classification": True,
    "causal-lm": False,
    "seq2seq": False,
    "image-classification": False,
    "audio-classification": False,
}


def check_task(task: str) -> None:
    """Raises PlanError for a task kind that is unknown or not built yet."""
    if not TASKS.get(task, False):
        built = ", ".join(name for name, ready in TASKS.items() if ready)
        state = "is planned, not built" if task in TASKS else "is not known"
        raise PlanError(f"task `{task}` {state}", f"use one of: {built}")


def family_of(model_type: str, *, source: str) -> Family:
    """The family. Raises ArtefactError that names the ones that work."""
    try:
        return FAMILIES[model_type]
    except KeyError:
        raise ArtefactError(
            f"{source}: model type `{model_type}` cannot be a base for sequence classification",
            f"use an encoder of: {', '.join(FAMILIES)}",
        ) from None
