"""Adapters of a decoder on a device: checked tensors for the graph's slots, several at once, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge_runtime.adapter import (
    MOST_BYTES,
    REFETCH,
    Tensors,
    adapter_file,
    check_slots,
    private_copy,
    read_any_note,
    read_tensors,
)
from edge_runtime.decoder.base import WritingBase
from protocol.decoder_manifest import DecoderManifest, WritingManifest
from protocol.errors import ArtefactError, DataError
from protocol.forms import PREFIX, SOFT_PROMPT
from protocol.misspelling import nearest
from storage.regular import read_regular

if TYPE_CHECKING:
    from protocol.transparency.policy import Policy


@dataclass(frozen=True, eq=False, kw_only=True)
class DecoderAdapter:
    """A loaded adapter: it is itself and no other, even of the same file loaded again.

    ``values``: OrtValues by the graph's inputs, which keep their arrays. ``fingerprint``: of the base that it
    fits. ``prefix``: what every cache holds at first, OrtValues (1, kv_heads, tokens, head_size) in the order
    of the manifest's cache, none for an adapter without one. ``caution``: what whoever runs it is told.
    """

    source: str
    fingerprint: str
    values: Mapping[str, Any]
    prefix: tuple[Any, ...] = ()
    caution: str = ""

    @property
    def prompt_length(self) -> int:
        """Rows of its soft prompt, which are read before a text."""
        return _size(self.values[SOFT_PROMPT], 0) if SOFT_PROMPT in self.values else 0

    @property
    def prefix_length(self) -> int:
        """Tokens of its prefix, which are never read."""
        return _size(self.prefix[0], 2) if self.prefix else 0

    @property
    def positions(self) -> int:
        """Those that it leaves to no text."""
        return self.prompt_length + self.prefix_length


def load_decoder_adapter(
    path: Path,
    base: WritingBase,
    *,
    sha256: str | None = None,
    policy: Policy | None = None,
    rank: int | None = None,
) -> DecoderAdapter:
    """Load the folder of a release or a blend, or an ``.onnx_adapter``.

    Where a ``sha256`` is given only the file with that one.
    With a ``policy`` it has to be a release in a log that this trusts. With a ``rank`` it writes by the first
    ranks of its factors. Raises ArtefactError or ProofError, DataError for a rank that it has not.
    """
    if path.is_dir():
        data = _of_folder(path, base, policy)
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
    if rank is None:
        return adapter_of(tensors, base, source=str(path))
    from edge_runtime.lower_rank import cut_release

    adapter_of(tensors, base, source=str(path))  # as it is, before anything is cut
    note = read_any_note(path) if path.is_dir() else None
    cut, _, caution = cut_release(tensors, note, rank, source=str(path))
    return replace(adapter_of(cut, base, source=str(path)), caution=caution)


def _of_folder(folder: Path, base: WritingBase, policy: Policy | None) -> bytes:
    note = read_any_note(folder)
    if note.labels or note.range is not None:
        raise ArtefactError(
            f"{folder} answers with {'labels' if note.labels else 'numbers'}, it writes no text",
            "use it with `fedge edge infer`",
        )
    return adapter_file(folder, note, fingerprint=base.manifest.fingerprint, policy=policy)


def _of_file(path: Path) -> bytes:
    try:
        return read_regular(path, most=MOST_BYTES)
    except OSError:
        raise ArtefactError(f"{path} is missing or cannot be read", REFETCH) from None


def adapter_of(tensors: Tensors, base: WritingBase, *, source: str) -> DecoderAdapter:
    """An adapter of tensors, float32 in the shapes of the manifest's slots. Raises ArtefactError."""
    manifest = base.manifest
    if SOFT_PROMPT in tensors and SOFT_PROMPT not in manifest.graph.slot_names:
        raise ArtefactError(
            f"{source}: it holds a soft prompt, for which the base's graph has no slot",
            "build the base again with this fedge: its fingerprint stays"
            if isinstance(manifest, DecoderManifest)
            else "train an adapter of linears, such as LoRA",
        )
    if not tensors:
        raise ArtefactError(f"{source}: it is empty, so that it adapts nothing", REFETCH)
    check_slots(tensors, manifest, source=source, beside=manifest.slots_beside())
    filled = manifest.inputs_of({n: value for n, value in tensors.items() if n != PREFIX})
    prefix = _prefix(tensors[PREFIX], manifest) if PREFIX in tensors else ()
    adapter = DecoderAdapter(
        source=source,
        fingerprint=manifest.fingerprint,
        values={name: _value(value) for name, value in filled.items()},
        prefix=prefix,
    )
    if adapter.positions >= manifest.max_positions:
        raise ArtefactError(
            f"{source}: it takes {adapter.positions} positions, the base has {manifest.max_positions}: "
            "none is left to a text",
            "train a shorter prompt or prefix",
        )
    return adapter


def _prefix(table: npt.NDArray[Any], manifest: WritingManifest) -> tuple[Any, ...]:
    """The cache's tensors of a prefix, as it lies in an adapter."""
    heads = table.reshape(len(table), manifest.layers * 2, manifest.kv_heads, manifest.head_size)
    return tuple(_value(part[None]) for part in heads.transpose(1, 2, 0, 3))


def _value(array: npt.NDArray[Any]) -> Any:
    """An OrtValue of a copy, which it keeps."""
    return ort.OrtValue.ortvalue_from_numpy(np.array(array, np.float32, order="C"))


def _size(value: Any, axis: int) -> int:
    return int(value.shape()[axis])


class Adapters:
    """Adapters of one base that are loaded, by the names that requests give."""

    def __init__(self, base: WritingBase) -> None:
        self._base = base
        self._loaded: dict[str, DecoderAdapter] = {}

    def load(
        self, name: str, path: Path, *, policy: Policy | None = None, rank: int | None = None
    ) -> DecoderAdapter:
        """Load a release or a file; whatever had the name is replaced once it is whole.

        Raises as :func:`load_decoder_adapter`.
        """
        adapter = load_decoder_adapter(path, self._base, policy=policy, rank=rank)
        self._loaded[name] = adapter
        return adapter

    def put(self, name: str, tensors: Tensors) -> DecoderAdapter:
        """The same of tensors."""
        self._loaded[name] = adapter = adapter_of(tensors, self._base, source=name)
        return adapter

    def keep(self, name: str, adapter: DecoderAdapter) -> None:
        """The same of one that is loaded."""
        self._loaded[name] = adapter

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
