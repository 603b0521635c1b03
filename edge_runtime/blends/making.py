"""Making a blend: adapters are verified as a device verifies them, summed, and written as one folder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.adapter import (
    MOST_BYTES,
    Tensors,
    adapter_file,
    check_answering,
    check_slots,
    private_copy,
    read_note,
    read_tensors,
)
from edge_runtime.base import read_any_manifest
from edge_runtime.blends.note import BLEND_FILE, MOST_PARTS, BlendNote, BlendPart, render_blend
from edge_runtime.blends.weighted import Weighted, blended
from edge_runtime.edge_adapter import write_edge_adapter
from edge_runtime.tasks import task_named
from protocol.decoder_manifest import WritingManifest
from protocol.denoiser_manifest import DenoiserManifest
from protocol.errors import ArtefactError, DataError, MachineError
from protocol.manifest import HeadManifest
from protocol.manifests import AnyManifest
from protocol.peft_format import EDGE_FILE, RELEASE_FILE, ReleaseNote
from storage.regular import read_regular, sha256_of
from storage.whole import folder_that_appears, write_whole

if TYPE_CHECKING:
    from protocol.transparency.policy import Policy

ALIKE = {
    "task": "they answer other tasks",
    "pairs": "one answers pairs of texts, the other single ones",
    "labels": "they have other labels, or the same in another order",
    "range": "their numbers are of another range",
}


@dataclass(frozen=True, kw_only=True)
class Share:
    """A released adapter, and its weight in a blend."""

    folder: Path
    weight: float


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A release that was read; ``release`` and ``adapter`` are sha256 of its two files."""

    share: Share
    note: ReleaseNote
    tensors: Tensors
    release: str
    adapter: str


def blend(
    out: Path, base: Path, shares: Sequence[Share], *, policy: Policy | None = None
) -> tuple[BlendNote, Tensors]:
    """Write the folder ``out`` with the weighted sum of released adapters of ``base``; what is in it.

    With a ``policy`` each has to be a release in a log that this trusts. Raises DataError for weights and
    for adapters that answer differently, ArtefactError or ProofError for what is wrong with one of them.
    """
    _verify_shares(shares)
    if out.exists():
        raise ArtefactError(f"{out} is there already", "name a folder that is not there")
    manifest = read_any_manifest(base)
    parts = [_read(share, manifest, policy) for share in shares]
    _verify_alike(parts)
    tensors = blended(
        [
            Weighted(source=str(p.share.folder), weight=p.share.weight, tensors=p.tensors)
            for p in parts
        ],
        manifest.linears,
    )
    _verify_size(tensors)
    try:
        with folder_that_appears(out) as folder:
            write_edge_adapter(tensors, folder / EDGE_FILE)
            digest = sha256_of(folder / EDGE_FILE)
            note = _note(parts, fingerprint=manifest.fingerprint, policy=policy, adapter=digest)
            write_whole(folder / BLEND_FILE, render_blend(note))
    except OSError as error:
        raise MachineError(
            f"{out} cannot be written: {error.strerror or error}", "name another folder"
        ) from None
    return note, tensors


def _verify_shares(shares: Sequence[Share]) -> None:
    """Some adapters, not too many, with weights that are numbers. Raises DataError."""
    if not 1 <= len(shares) <= MOST_PARTS:
        raise DataError(
            f"a blend of {len(shares)} adapters: it has 1 to {MOST_PARTS}",
            "name them: --adapter FOLDER=0.7 --adapter OTHER=0.3",
        )
    for share in shares:
        if not math.isfinite(share.weight) or share.weight == 0:
            raise DataError(
                f"{share.folder}: weight {share.weight:g} is no part of a blend",
                "give a number other than 0, or leave this adapter out",
            )


def _read(share: Share, manifest: AnyManifest, policy: Policy | None) -> _Part:
    """A release, verified as if it were to run alone. Raises ArtefactError, ProofError, DataError."""
    folder = share.folder
    if folder.is_file():
        raise ArtefactError(
            f"{folder} is a file alone, which names no base", "name the folder of the release"
        )
    note = read_note(folder)
    release = hashlib.sha256(read_regular(folder / RELEASE_FILE)).hexdigest()
    data = adapter_file(folder, note, fingerprint=manifest.fingerprint, policy=policy)
    path = folder / EDGE_FILE
    with private_copy(data) as own:
        tensors = read_tensors(own, source=str(path))
    if isinstance(manifest, HeadManifest):
        task_named(note.task)
        check_answering(tensors, manifest, labels=note.outputs, source=str(path))
    elif isinstance(manifest, DenoiserManifest):
        if not note.draws:
            raise ArtefactError(
                f"{folder} answers task `{note.task}`, and the base draws images",
                "name releases of this base",
            )
        check_slots(tensors, manifest, source=str(path))
    else:
        assert isinstance(manifest, WritingManifest)
        if note.outputs:
            raise ArtefactError(
                f"{folder} answers task `{note.task}`, and the base writes text",
                "name releases of this base",
            )
        check_slots(tensors, manifest, source=str(path), beside=manifest.slots_beside())
    adapter = hashlib.sha256(data).hexdigest()
    return _Part(share=share, note=note, tensors=tensors, release=release, adapter=adapter)


def _verify_alike(parts: Sequence[_Part]) -> None:
    """All answer the same question in the same way. Raises DataError."""
    first = parts[0]
    for part in parts[1:]:
        for key, words in ALIKE.items():
            if getattr(part.note, key) != getattr(first.note, key):
                raise DataError(
                    f"{first.share.folder} and {part.share.folder} differ: {words}",
                    "blend adapters that were trained for the same answers",
                )


def _verify_size(tensors: Tensors) -> None:
    """No device would refuse the file. Raises ArtefactError."""
    size = sum(value.nbytes for value in tensors.values())
    if size > MOST_BYTES - 2**20:  # what the file has beside them
        raise ArtefactError(
            f"the blend has {size} bytes, above {MOST_BYTES}, and devices would refuse it",
            "blend fewer adapters, or of lower rank",
        )


def _note(
    parts: Sequence[_Part], *, fingerprint: str, policy: Policy | None, adapter: str
) -> BlendNote:
    first = parts[0].note
    whole = len(parts) == 1 and parts[0].share.weight == 1
    return BlendNote(
        base_fingerprint=fingerprint,
        parts=[
            BlendPart(
                plan_name=part.note.plan_name,
                round=part.note.round,
                release=part.release,
                adapter=part.adapter,
                weight=part.share.weight,
            )
            for part in parts
        ],
        verified=policy is not None,
        task=first.task,
        pairs=first.pairs,
        labels=first.labels,
        range=first.range,
        max_length=max(part.note.max_length for part in parts),
        calibration=first.calibration if whole else None,
        files={EDGE_FILE: adapter},
    )
