"""Adapters of a decoder on a device: checked tensors for the graph's slots, several at once, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from edge_runtime.adapter import (
    MOST_BYTES,
    REFETCH,
    Tensors,
    check_slots,
    private_copy,
    read_note,
    read_tensors,
    released_file,
)
from edge_runtime.decoder.base import DecoderBase
from protocol.errors import ArtefactError, DataError
from protocol.forms import SOFT_PROMPT
from protocol.misspelling import nearest
from storage.regular import read_regular

if TYPE_CHECKING:
    from protocol.transparency.policy import Policy


@dataclass(frozen=True, eq=False, kw_only=True)
class DecoderAdapter:
    """A loaded adapter: it is itself and no other, even of the same file loaded again.

    ``values``: OrtValues by slot, which keep their arrays. ``fingerprint``: of the base that it fits.
    """

    source: str
    fingerprint: str
    values: Mapping[str, Any]


def load_decoder_adapter(
    path: Path, base: DecoderBase, *, sha256: str | None = None, policy: Policy | None = None
) -> DecoderAdapter:
    """Load the folder of a release, or an ``.onnx_adapter``, where a ``sha256`` is given only with that one.

    With a ``policy`` it has to be a release in a log that this trusts. Raises ArtefactError or ProofError.
    """
    if path.is_dir():
        data = _of_release(path, base, policy)
    elif policy is not None:
        raise ArtefactError(
            f"{path} is a file alone, which no log vouches for", "name the folder of the release"
        )
    else:
        data = _of_file(path)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise ArtefactError(f"{path} is damaged: its sha256 is not the one named", REFETCH)
    with private_copy(data) as own:
        tensors = read_tensors(own, source=str(path))
    return adapter_of(tensors, base, source=str(path))


def _of_release(folder: Path, base: DecoderBase, policy: Policy | None) -> bytes:
    note = read_note(folder)
    if note.labels or note.range is not None:
        raise ArtefactError(
            f"{folder} answers with {'labels' if note.labels else 'numbers'}, it writes no text",
            "use it with `fedge edge infer`",
        )
    return released_file(folder, note, fingerprint=base.manifest.fingerprint, policy=policy)


def _of_file(path: Path) -> bytes:
    try:
        return read_regular(path, most=MOST_BYTES)
    except OSError:
        raise ArtefactError(f"{path} is missing or cannot be read", REFETCH) from None


def adapter_of(tensors: Tensors, base: DecoderBase, *, source: str) -> DecoderAdapter:
    """An adapter of tensors, float32 in the shapes of the manifest's slots. Raises ArtefactError."""
    if SOFT_PROMPT in tensors:
        raise ArtefactError(
            f"{source}: it holds a soft prompt, which a base that writes text does not take",
            "train an adapter of linears, such as LoRA",
        )
    if not tensors:
        raise ArtefactError(f"{source}: it is empty, so that it adapts nothing", REFETCH)
    check_slots(tensors, base.manifest, source=source)
    values = {
        name: ort.OrtValue.ortvalue_from_numpy(np.array(value, np.float32, order="C"))
        for name, value in tensors.items()
    }
    return DecoderAdapter(source=source, fingerprint=base.manifest.fingerprint, values=values)


class Adapters:
    """Adapters of one base that are loaded, by the names that requests give."""

    def __init__(self, base: DecoderBase) -> None:
        self._base = base
        self._loaded: dict[str, DecoderAdapter] = {}

    def load(self, name: str, path: Path, *, policy: Policy | None = None) -> DecoderAdapter:
        """Load a release or a file; whatever had the name is replaced once it is whole.

        Raises as :func:`load_decoder_adapter`.
        """
        self._loaded[name] = adapter = load_decoder_adapter(path, self._base, policy=policy)
        return adapter

    def put(self, name: str, tensors: Tensors) -> DecoderAdapter:
        """The same of tensors."""
        self._loaded[name] = adapter = adapter_of(tensors, self._base, source=name)
        return adapter

    def remove(self, name: str) -> None:
        """Forget an adapter; texts that are being written end with it. Raises DataError as `named`."""
        self.named(name)
        self._loaded.pop(name, None)

    def named(self, name: str | None) -> DecoderAdapter | None:
        """The adapter of a name, None being the base alone. Raises DataError for a name of none."""
        if name is None:
            return None
        if adapter := self._loaded.get(name):
            return adapter
        near = nearest(name, self._loaded)
        raise DataError(
            f"no adapter `{name[:60]}` is loaded" + (f"; the nearest is `{near}`" if near else ""),
            f"name one of: {', '.join(sorted(self._loaded)) or 'none is loaded'}",
        )
