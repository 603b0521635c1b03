"""Where a decoder comes from, by how its source is written: the one place that knows every kind."""

from __future__ import annotations

from pathlib import Path

from base_model.decoder.folder import folder_source
from base_model.decoder.source import DecoderSource
from base_model.gguf.read import SUFFIX, read_gguf
from base_model.places import locate, locate_file


def decoder_source(source: str, *, beside: Path | None = None) -> DecoderSource:
    """The decoder of a Hugging Face folder or Hub id, of a GGUF file, or of either in ``package:module/…``.

    What is relative starts at ``beside``. Raises ArtefactError for what is no decoder, MachineError for what
    this machine does not have.
    """
    if is_file(source):
        return read_gguf(locate_file(source, beside=beside))
    return folder_source(locate(source, beside=beside))


def is_file(source: str) -> bool:
    """Whether a source is written as a file of a model's, not as a folder."""
    return source.lower().endswith(SUFFIX)
