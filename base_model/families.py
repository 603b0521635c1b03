"""What kinds of model can be a base, and what is particular about each family.

A family is listed when its tests pass; a task kind that is only planned is listed as refused, so
that the seam and the error are in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from base_model.decoder.families import FAMILIES as DECODERS
from base_model.images.families import FAMILIES as IMAGES
from base_model.seq2seq.families import FAMILIES as SEQ2SEQ
from base_model.sounds.families import FAMILIES as SOUNDS
from protocol.errors import ArtefactError, PlanError
from protocol.manifest import DOCUMENTS


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """An encoder family by Hugging Face's ``model_type``.

    ``prefix``: attribute of the encoder in the classification model. ``counts_pads``: positions follow
    from the ids and begin behind ``pad_token_id``, and a pad inside a text has none of its own.
    ``default_pooling``: for a source that says nothing. ``dense``: the inner layer of Hugging Face's own
    classification head, under its name in a checkpoint and its path in the base's model, where pooling
    ``pooler`` applies it; ``out``: the name of the head's outer layer. ``key``: last path component of
    the linears that give keys. ``layers``: what the module path of
    every linear in a layer has in it. ``embedding``: the key of ``config.json`` with the width of word
    embeddings. ``attention``: what transformers' class computes attention with. ``activation``: behind
    ``dense`` where the encoder has no pooler of its own. ``pad``: the only padding id its code works with.
    ``boxed``: it reads where words stand on a page, and has its pooler whatever is asked.
    """

    model_type: str
    prefix: str
    counts_pads: bool = False
    default_pooling: Literal["mean", "cls", "pooler"] = "cls"
    dense: tuple[str, str] | None = None
    out: str = "classifier"
    key: str = "key"
    layers: str = ".layer."
    embedding: str = "hidden_size"
    attention: Literal["sdpa", "eager"] = "sdpa"
    activation: Literal["relu", "gelu"] | None = None
    pad: int | None = None
    boxed: bool = False

    def positions(self, config: Any) -> int:
        """How many tokens a text may have by the position table."""
        kept = config.pad_token_id + 1 if self.counts_pads else 0
        return int(config.max_position_embeddings) - kept


def _like_roberta(model_type: str, prefix: str, **others: Any) -> Family:
    """A head of two layers; positions counted from the padding id."""
    return Family(
        model_type=model_type,
        prefix=prefix,
        counts_pads=True,
        dense=("classifier.dense", f"{prefix}.pooler.dense"),
        out="classifier.out_proj",
        **others,
    )


FAMILIES = {
    family.model_type: family
    for family in (
        Family(model_type="bert", prefix="bert", default_pooling="pooler"),
        Family(
            model_type="distilbert",
            prefix="distilbert",
            dense=("pre_classifier", "pooler"),
            key="k_lin",
            activation="relu",
        ),
        _like_roberta("roberta", "roberta"),
        _like_roberta("xlm-roberta", "roberta"),
        _like_roberta("camembert", "roberta"),
        _like_roberta("mpnet", "mpnet", key="k", attention="eager", pad=1),
        Family(model_type="ernie", prefix="ernie", default_pooling="pooler"),
        Family(
            model_type="electra",
            prefix="electra",
            dense=("classifier.dense", "pooler"),
            out="classifier.out_proj",
            embedding="embedding_size",
            activation="gelu",
        ),
        Family(
            model_type="albert",
            prefix="albert",
            default_pooling="pooler",
            layers=".albert_layers.",
            embedding="embedding_size",
        ),
        Family(model_type="layoutlm", prefix="layoutlm", default_pooling="pooler", boxed=True),
    )
}
REFUSED = {
    "deberta": "its queries, keys and values lie in one matrix, in which an adapter cannot tell them apart",
    "deberta-v2": "its linears also read a table of distances, whose rows are not those of the texts",
    "modernbert": "its feed-forward is gated, and its queries, keys and values lie in one matrix",
}
REFUSED_OF_DOCUMENTS = {
    "layoutlmv2": "it reads the page's image as well, by convolutions of a package of its own",
    "layoutlmv3": "it reads the page's image as well, and its attention adds tables of distances",
    "lilt": "words and boxes have an encoder each, which read each other's attention",
    "bros": "its attention adds a product with the distances between boxes",
}

TASKS = {
    "sequence-classification": True,
    "causal-lm": True,
    "seq2seq": False,
    "image-classification": True,
    "audio-classification": True,
    DOCUMENTS: True,
}


def check_task(task: str) -> None:
    """Raises PlanError for a task kind that is unknown or not built yet."""
    if not TASKS.get(task, False):
        built = ", ".join(name for name, ready in TASKS.items() if ready)
        state = "is planned, not built" if task in TASKS else "is not known"
        raise PlanError(f"task `{task}` {state}", f"use one of: {built}")


def family_of(model_type: str, *, source: str, task: str = "sequence-classification") -> Family:
    """The family, for a base of texts or of documents. Raises ArtefactError that names the ones that work."""
    boxed = task == DOCUMENTS
    family = FAMILIES.get(model_type)
    if family is not None and family.boxed == boxed:
        return family
    named = f"{source}: model type `{model_type}`"
    able = ", ".join(name for name, other in FAMILIES.items() if other.boxed == boxed)
    asked = f"a base that sorts {'documents' if boxed else 'texts'} was asked for"
    if family is not None:
        reads, instead = (
            ("does not read where words stand", "leave --task out")
            if boxed
            else ("reads where words stand on a page", f"add --task {DOCUMENTS}")
        )
        raise ArtefactError(
            f"{named} {reads}, and {asked}", f"{instead}, or use an encoder of: {able}"
        )
    for other_task, families, does in (
        ("causal-lm", DECODERS, "writes texts"),
        ("seq2seq-lm", SEQ2SEQ, "writes texts"),
        ("image-classification", IMAGES, "reads images"),
        ("audio-classification", SOUNDS, "reads sounds"),
    ):
        if model_type in families:
            raise ArtefactError(
                f"{named} {does}, and {asked}", f"add --task {other_task}, or name an encoder"
            )
    reasons = REFUSED | REFUSED_OF_DOCUMENTS
    why = f": {reasons[model_type]}" if model_type in reasons else ""
    kind = "document" if boxed else "sequence"
    raise ArtefactError(
        f"{named} cannot be a base for {kind} classification{why}", f"use an encoder of: {able}"
    )
