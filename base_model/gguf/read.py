"""A decoder from a GGUF file."""

from __future__ import annotations

from pathlib import Path

from base_model.decoder.source import DecoderSource
from base_model.gguf.architecture import architecture_of, config_of, places_of
from base_model.gguf.container import read_container
from base_model.gguf.tensors import GgufTensors
from base_model.gguf.tokenizer import vocabulary_of

SUFFIX = ".gguf"


def read_gguf(path: Path) -> DecoderSource:
    """The model of a file: Q4_0, Q4_1 and Q8_0 as the codes that it holds, everything else as floats.

    ``tensors`` are read from the file whenever they are asked for. ``begin`` is None where texts begin with
    no token; where it is a token, the tokenizer itself puts it there. Raises ArtefactError, of the file
    and what is wrong with it.
    """
    container = read_container(path)
    config, reasons = config_of(container, architecture_of(container))
    tensors = GgufTensors(container, places_of(config))
    vocabulary = vocabulary_of(container, embeddings=config["vocab_size"])
    name = container.keys.get("general.name")
    return DecoderSource(
        name=name if isinstance(name, str) and name else path.stem,
        config={**config, **vocabulary.ids},
        tensors=tensors,
        tokenizer=vocabulary.text,
        chat_template=vocabulary.chat_template,
        begin=vocabulary.begin,
        ends=vocabulary.ends,
        reasons=(*reasons, *vocabulary.reasons),
    )
