"""Adapters of a decoder on a device: checked tensors for the graph's slots, several at once, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edge_runtime.adapter import (
    MOST_BYTES,
    REFETCH,
    Tensors,
    check_slots,
    private_copy,
    read_tensors,
)
from edge_runtime.decoder.base import WritingBase
from protocol.errors import ArtefactError, DataError
from protocol.forms import SOFT_PROMPT
from protocol.misspelling import nearest
from storage.regular import read_regular


@dataclass(frozen=True, eq=False, kw_only=True)
class DecoderAdapter:
    """A loaded adapter: it is itself and no other, even of the same file loaded again.

    ``values``: OrtValues by slot, which keep their arrays. ``fingerprint``: of the base that it fits.
    """

    source: str
    fingerprint: str
    values: Mapping[str, Any]


def load_decoder_adapter(
    path: Path, base: WritingBase, *, sha256: str | None = None
) -> DecoderAdapter:
    """Load an ``.onnx_adapter``, where a ``sha256`` is given only with that one. Raises ArtefactError."""
    if path.is_dir():
        raise ArtefactError(f"{path} is a folder", "name the .onnx_adapter in it")
    try:
        data = read_regular(path, most=MOST_BYTES)
    except OSError:
        raise ArtefactError(f"{path} is missing or cannot be read", REFETCH) from None
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise ArtefactError(f"{path} is damaged: its sha256 is not the one named", REFETCH)
    with private_copy(data) as own:
        tensors = read_tensors(own, source=str(path))
    return adapter_of(tensors, base, source=str(path))


def adapter_of(tensors: Tensors, base: WritingBase, *, source: str) -> DecoderAdapter:
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

    def __init__(self, base: WritingBase) -> None:
        self._base = base
        self._loaded: dict[str, DecoderAdapter] = {}

    def load(self, name: str, path: Path) -> DecoderAdapter:
        """Load a file; whatever had the name is replaced once it is whole. Raises ArtefactError."""
        self._loaded[name] = adapter = load_decoder_adapter(path, self._base)
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
