"""The source of a base: a Hugging Face model, from a folder, a package or the Hub.

Every tensor of the base's model comes out of the checkpoint, by its name and in its shape; what is
absent, and what the encoder by its ``config.json`` has no place for, is refused. Weights are read as
float32 whatever the source or torch's default says: other rounding would give other codes, and so
another base.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from torch import Tensor
from transformers import PretrainedConfig

from base_model.checkpoint import read_checkpoint
from base_model.encoder import EncoderClassifier
from base_model.families import Family, family_of
from base_model.headed_source import (
    COMPLETE,
    check_plain,
    check_stated,
    config_of,
    fitted,
    labels_of,
    rows_of,
    shapes_of,
)
from base_model.places import CONFIG, Place, check_texts, locate
from base_model.pooling import Choice, Pooling, choose
from base_model.source_files import read_object
from base_model.source_tokenizer import tokenizer_text
from protocol.errors import ArtefactError
from protocol.rows.pages import EDGE

transformers.utils.logging.disable_progress_bar()  # the commands draw their own
# What shapes do not show, so that a default would go unnoticed; Hugging Face's names and DistilBERT's.
STATED = (
    ("hidden_size", "dim"),
    ("num_hidden_layers", "n_layers"),
    ("num_attention_heads", "n_heads"),
    ("vocab_size",),
)
BUFFERS = ("position_ids", "token_type_ids")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A loaded source.

    ``tensors``: of :class:`EncoderClassifier`, float32, by its names; ``classifier`` is among them where
    the source's own head was kept, with ``labels`` then its names in order (else None). ``reasons``:
    what was chosen and why, for the publisher.
    """

    name: str
    config: PretrainedConfig
    family: Family
    tensors: dict[str, Tensor]
    labels: list[str] | None
    tokenizer: str
    pooling: Pooling
    reasons: tuple[str, ...]


def load_source(source: str, *, pooling: str, task: str = "sequence-classification") -> Source:
    """Load encoder, head and tokenizer. Raises ArtefactError or MachineError for what is no base."""
    place = locate(source)
    config, family = _config(place, task)
    check_texts(place)
    encoder, outside = _apart(read_checkpoint(place.model), family)
    choice = choose(pooling, place, config, family, outside)
    labels = labels_of(source, config, outside[f"{family.out}.weight"]) if choice.head else None
    tensors = _tensors(source, config, family, choice, encoder, outside)
    rows = tensors[_embeddings(family)].shape[0]
    return Source(
        name=source,
        config=config,
        family=family,
        tensors=tensors,
        labels=labels,
        tokenizer=tokenizer_text(place.model, config, embeddings=rows, source=source),
        pooling=choice.pooling,
        reasons=choice.reasons,
    )


def _config(place: Place, task: str) -> tuple[PretrainedConfig, Family]:
    path = place.model / CONFIG
    document = read_object(path)
    model_type = document.get("model_type")
    if not isinstance(model_type, str):
        raise ArtefactError(f"{path}: there is no `model_type`", "save the model with transformers")
    family = family_of(model_type, source=place.name, task=task)
    _check_document(place.name, document)
    config = config_of(path, document)
    pad = config.pad_token_id
    if family.counts_pads and not (isinstance(pad, int) and 0 <= pad < config.vocab_size):
        raise ArtefactError(
            f"{path}: `pad_token_id` is {pad}, and positions are counted from it",
            "write the id of the tokenizer's padding token",
        )
    if family.pad not in (None, pad):
        raise ArtefactError(
            f"{path}: `pad_token_id` is {pad}, and {model_type} counts positions from {family.pad}",
            "take a model whose padding token has that id",
        )
    if family.positions(config) < 1:
        raise ArtefactError(f"{path}: its {CONFIG} leaves no position for a text", "correct it")
    if family.boxed and not config.max_2d_position_embeddings > EDGE:
        raise ArtefactError(
            f"{path}: `max_2d_position_embeddings` is {config.max_2d_position_embeddings}, and boxes go up "
            f"to {EDGE}",
            "take a model whose tables have a row for each",
        )
    return config, family


def _check_document(source: str, document: dict[str, Any]) -> None:
    """What would be guessed, ignored or asked for is refused. Raises ArtefactError."""
    check_stated(source, document, STATED)
    check_plain(source, document)
    if document.get("position_embedding_type", "absolute") != "absolute":
        raise ArtefactError(
            f"{source}: positions of the type {document['position_embedding_type']!r}",
            "use a model with absolute positions",
        )
    if document.get("is_decoder") or document.get("add_cross_attention"):
        raise ArtefactError(f"{source}: it is a decoder", "use an encoder")


def _apart(found: dict[str, Tensor], family: Family) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The checkpoint's tensors: the encoder's by their names in it, and those outside by theirs.

    A checkpoint of the encoder alone has no prefix, one with a head on it has.
    """
    prefix = f"{family.prefix}."
    inside = {name for name in found if name.startswith(prefix)}
    if not inside:
        tops = ("embeddings.", "embeddings_project.", "encoder.", "transformer.", "pooler.")
        inside = {name for name in found if name.startswith(tops)}
    return (
        {name.removeprefix(prefix): found[name] for name in inside},
        {name: value for name, value in found.items() if name not in inside},
    )


def _tensors(
    source: str,
    config: PretrainedConfig,
    family: Family,
    choice: Choice,
    encoder: dict[str, Tensor],
    outside: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Every tensor of the base's model but a head that is drawn anew. Raises ArtefactError."""
    there = {f"{family.prefix}.{name}": value for name, value in encoder.items()}
    if choice.pooling != "pooler" or (choice.head and family.dense):
        there = {k: v for k, v in there.items() if not k.startswith(f"{family.prefix}.pooler.")}
    layers = [(family.out, "classifier"), *filter(None, [family.dense])] if choice.head else []
    for layer, path in layers:
        for kind in ("weight", "bias"):
            there[f"{path}.{kind}"] = outside[f"{layer}.{kind}"]
    head = there.get("classifier.weight")
    labels = 2 if head is None else rows_of(head)
    shapes = shapes_of(
        source, lambda: EncoderClassifier(config, pooling=choice.pooling, labels=labels)
    )
    if not choice.head:
        shapes = {k: v for k, v in shapes.items() if not k.startswith("classifier.")}
    return fitted(source, shapes, there, without=BUFFERS, lacking=_lacking)


def _lacking(absent: list[str]) -> str:
    dense = all("pooler." in name for name in absent)
    return "pass --pooling mean or cls" if dense else COMPLETE


def _embeddings(family: Family) -> str:
    return f"{family.prefix}.embeddings.word_embeddings.weight"
