"""The tensors of a PEFT folder, read with numpy alone. (P-5.1)"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file

from protocol.errors import ArtefactError
from protocol.layout import Tensors
from protocol.peft_format import (
    CONFIG_FILE,
    RELEASE_FILE,
    WEIGHTS_FILE,
    Published,
    ReleaseNote,
    from_peft,
    parse_release,
    published_as,
)
from storage.regular import read_regular_text, sha256_of


def read_note(adapter: Path) -> ReleaseNote:
    """``release.json`` of an adapter folder. Raises ArtefactError."""
    path = adapter / RELEASE_FILE
    try:
        return parse_release(read_regular_text(path), source=str(path))
    except OSError:
        raise ArtefactError(
            f"{adapter} is not an adapter: there is no {RELEASE_FILE}",
            "name a folder `rounds/NNNN/adapter` of a run",
        ) from None


def read_peft(adapter: Path) -> Tensors:
    """The tensors of a PEFT folder under canonical names. Raises ArtefactError."""
    method = published_of(adapter).method
    try:
        return from_peft(load_file(adapter / WEIGHTS_FILE), method=method)
    except (SafetensorError, OSError) as error:
        raise ArtefactError(
            f"{adapter / WEIGHTS_FILE}: cannot be read: {error}", "fetch the adapter again"
        ) from None


def published_of(adapter: Path) -> Published:
    """How a PEFT folder is read, by its ``adapter_config.json``. Raises ArtefactError."""
    path = adapter / CONFIG_FILE
    try:
        return published_as(read_regular_text(path), source=str(path))
    except (OSError, UnicodeDecodeError):
        raise ArtefactError(f"{path}: cannot be read", "fetch the adapter again") from None


def verify_files(adapter: Path, note: ReleaseNote) -> None:
    """Every file of the folder that its note names is that file. Raises ArtefactError."""
    for name, expected in sorted(note.files.items()):
        path = adapter / name
        if not path.is_file() or sha256_of(path) != expected:
            raise ArtefactError(
                f"{path} is not the file that {RELEASE_FILE} names", "fetch the adapter again"
            )
