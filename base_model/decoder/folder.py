"""A decoder from a folder of Hugging Face's: configs, tokenizer, safetensors, and no code of anybody's."""

from __future__ import annotations

from base_model.decoder.checkpoint_names import NamedTensors
from base_model.decoder.families import shape_of
from base_model.decoder.source import DecoderSource
from base_model.decoder.tensor_files import CheckpointTensors
from base_model.decoder.texts import begin_of, chat_template_of, ends_of, tokenizer_of
from base_model.places import Place
from base_model.source_files import read_object
from protocol.errors import ArtefactError
from protocol.manifest import CONFIG


def folder_source(place: Place) -> DecoderSource:
    """The decoder at ``place``; its tensors are read when they are asked for.

    Raises ArtefactError for a folder that is incomplete, and for a model that is not supported.
    """
    folder = place.model
    config = read_object(folder / CONFIG)
    try:
        shape = shape_of(config)  # before a large file is opened
    except ArtefactError as error:  # its cause begins with the file's name
        raise ArtefactError(f"{folder}/{error.cause}", error.remedy) from None
    text, tokenizer = tokenizer_of(folder, vocabulary=shape.vocabulary)
    return DecoderSource(
        name=place.name,
        config=config,
        tensors=NamedTensors(shape, CheckpointTensors(folder)),
        tokenizer=text,
        chat_template=chat_template_of(folder),
        begin=begin_of(folder, tokenizer),
        ends=ends_of(folder, config, tokenizer),
    )
