"""An encoder with a decoder from a folder of Hugging Face's: configs, tokenizer, safetensors, no code."""

from __future__ import annotations

from base_model.decoder.source import DecoderSource
from base_model.decoder.stored import is_repeated
from base_model.decoder.tensor_files import CheckpointTensors
from base_model.decoder.texts import GENERATION, ends_of, tokenizer_of
from base_model.places import locate
from base_model.seq2seq.families import is_scaled, shape_of
from base_model.seq2seq.shape import HEAD, SHARED
from base_model.source_files import read_object
from protocol.errors import ArtefactError
from protocol.manifest import CONFIG

START = "decoder_start_token_id"


def seq2seq_source(source: str) -> DecoderSource:
    """The model of a folder or Hub id; its tensors are read when they are asked for.

    Its config says what the source's leaves to the checkpoint and to other files: whether the output layer
    is the table of words, whether logits are scaled, and the token that comes first.

    Raises ArtefactError for a folder that is incomplete, and for a model that is not supported.
    """
    place = locate(source)
    folder = place.model
    config = read_object(folder / CONFIG)
    generation = read_object(folder / GENERATION) if (folder / GENERATION).exists() else {}
    if config.get(START) is None and generation.get(START) is not None:
        config[START] = generation[START]
    try:
        shape_of(config)  # before a large file is opened
        scaled = is_scaled(config)
    except ArtefactError as error:  # its cause begins with the file's name
        raise ArtefactError(f"{folder}/{error.cause}", error.remedy) from None
    tensors = CheckpointTensors(folder)
    config["tie_word_embeddings"] = _is_tied(tensors)
    config["scale_decoder_outputs"] = scaled
    shape = shape_of(config)
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


def _is_tied(tensors: CheckpointTensors) -> bool:
    """Whether the checkpoint has no other output layer than its words. Raises ArtefactError."""
    head, words = f"{HEAD}.weight", f"{SHARED}.weight"
    return head not in tensors or (words in tensors and is_repeated(tensors[head], tensors[words]))
