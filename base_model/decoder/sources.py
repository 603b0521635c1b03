"""Where a decoder comes from, by how its source is written: the one place that knows every kind."""

from __future__ import annotations

from base_model.decoder.folder import folder_source
from base_model.decoder.source import DecoderSource
from base_model.gguf.read import SUFFIX, read_gguf
from base_model.places import locate, locate_file


def decoder_source(source: str) -> DecoderSource:
    """The decoder of a Hugging Face folder or Hub id, of a GGUF file, or of either in ``package:module/…``.

    Raises ArtefactError for what is no decoder, MachineError for what this machine does not have.
    """
    if source.lower().endswith(SUFFIX):
        return read_gguf(locate_file(source))
    return folder_source(locate(source))
