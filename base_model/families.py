"""What kinds of model can be a base, and what is particular about each family.

A family is listed when its tests pass; a task kind that is only planned is listed as refused, so
that the seam and the error are in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from protocol.errors import ArtefactError, PlanError


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """An encoder family by Hugging Face's ``model_type``.

    ``prefix``: attribute of the encoder in the classification model. ``counts_pads``: positions follow
    from the ids and begin behind ``pad_token_id``, and a pad inside a text has none of its own.
    ``default_pooling``: for a source that says nothing. ``dense``: the inner layer of Hugging Face's own
    classification head, under its name in a checkpoint and its path in the base's model, where pooling
    ``pooler`` applies it; ``out``: the name of the head's outer layer. ``attended``: last path components of
    the linears that give keys and values, which an adapter may scale.
    """

    model_type: str
    prefix: str
    counts_pads: bool = False
    default_pooling: Literal["mean", "cls", "pooler"] = "cls"
    dense: tuple[str, str] | None = None
    out: str = "classifier"
    attended: tuple[str, str] = ("key", "value")

    def positions(self, config: Any) -> int:
        """How many tokens a text may have by the position table."""
        kept = config.pad_token_id + 1 if self.counts_pads else 0
        return int(config.max_position_embeddings) - kept


_ROBERTA: dict[str, Any] = {
    "prefix": "roberta",
    "counts_pads": True,
    "dense": ("classifier.dense", "roberta.pooler.dense"),
    "out": "classifier.out_proj",
}
FAMILIES = {
    family.model_type: family
    for family in (
        Family(model_type="bert", prefix="bert", default_pooling="pooler"),
        Family(
            model_type="distilbert",
            prefix="distilbert",
            dense=("pre_classifier", "pooler"),
            attended=("k_lin", "v_lin"),
        ),
        Family(model_type="roberta", **_ROBERTA),
        Family(model_type="xlm-roberta", **_ROBERTA),
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
