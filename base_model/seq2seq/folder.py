"""An encoder with a decoder from a folder of Hugging Face's: configs, tokenizer, safetensors, no code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from base_model.decoder.fields import OTHER
from base_model.decoder.source import DecoderSource, Floats
from base_model.decoder.stored import is_repeated
from base_model.decoder.tensor_files import CheckpointTensors
from base_model.decoder.texts import GENERATION, ends_of, tokenizer_of
from base_model.places import locate
from base_model.seq2seq.families import is_scaled, shape_of
from base_model.seq2seq.shape import HEAD
from base_model.source_files import read_object
from protocol.errors import ArtefactError
from protocol.manifest import CONFIG

START = "decoder_start_token_id"
INSIDE, BIAS = "model.", "final_logits_bias"


def seq2seq_source(source: str, *, beside: Path | None = None) -> DecoderSource:
    """The model of a folder or Hub id; its tensors are read when they are asked for.

    What is relative starts at ``beside``.

    Its config says what the source's leaves to the checkpoint and to other files: whether the output layer
    is the table of words, whether logits are scaled, and the token that comes first.

    Raises ArtefactError for a folder that is incomplete, and for a model that is not supported.
    """
    place = locate(source, beside=beside)
    folder = place.model
    config = read_object(folder / CONFIG)
    generation = read_object(folder / GENERATION) if (folder / GENERATION).exists() else {}
    if config.get(START) is None and generation.get(START) is not None:
        config[START] = generation[START]
    try:
        shape_of(config)  # before a large file is opened
        scaled = is_scaled(config) if config["model_type"] == "t5" else None
    except ArtefactError as error:  # its cause begins with the file's name
        raise ArtefactError(f"{folder}/{error.cause}", error.remedy) from None
    tensors = _named_as_in_the_whole(CheckpointTensors(folder), config)
    config["tie_word_embeddings"] = _is_tied(tensors, config)
    if scaled is not None:
        config["scale_decoder_outputs"] = scaled
    shape = shape_of(config)
    _verify_without_bias(tensors, folder)
    text, tokenizer = tokenizer_of(folder, vocabulary=shape.vocabulary)
    return DecoderSource(
        name=place.name,
        config=config,
        tensors=tensors,
        tokenizer=text,
        chat_template=None,
        begin=shape.start,
        ends=ends_of(folder, config, tokenizer),
    )


class _Inside(Mapping[str, Floats]):
    """Tensors of a model without its output layer, by the names that they have in the whole."""

    def __init__(self, tensors: Mapping[str, Floats]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Floats:
        return self._tensors[name.removeprefix(INSIDE)]

    def __iter__(self) -> Iterator[str]:
        return (f"{INSIDE}{name}" for name in self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _named_as_in_the_whole(
    tensors: Mapping[str, Floats], config: Mapping[str, Any]
) -> Mapping[str, Floats]:
    """BART's checkpoints may be of the part that has no output layer."""
    inside = config["model_type"] == "bart" and f"{INSIDE}shared.weight" not in tensors
    return _Inside(tensors) if inside else tensors


def _is_tied(tensors: Mapping[str, Floats], config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint has no other output layer than its words. Raises ArtefactError."""
    head, words = f"{HEAD}.weight", f"{shape_of(config).embeddings}.weight"
    return head not in tensors or (words in tensors and is_repeated(tensors[head], tensors[words]))


def _verify_without_bias(tensors: Mapping[str, Floats], folder: Path) -> None:
    if BIAS in tensors and np.any(tensors[BIAS]):
        raise ArtefactError(f"{folder}: {BIAS} is not 0, which is not supported", OTHER)
