"""What manifests have of a base that reads files of a medium: images (P-1.15, P-1.18) or sounds (P-1.16)."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Self, TypeVar

from protocol.documents import OddError, json_as
from protocol.encoding import canonical_json, digest
from protocol.errors import ArtefactError
from protocol.manifest import CONFIG, BaseManifest, HeadManifest, Record, task_of, verify_named
from protocol.media import Medium

ATTENTION = 512**2  # pairs of positions, which a run's memory grows with


class MediaManifest(BaseManifest, ABC):
    """The graph reads one array of a fixed shape for each file; there is no tokenizer, and no length."""

    MEDIUM: ClassVar[Medium]
    INPUT: ClassVar[str]  # of the graph, float32, (rows, *shape)
    SETTINGS: ClassVar[str]  # the key that says what becomes of a file
    TAG: ClassVar[str]  # of the fingerprint

    @property
    def settings(self) -> Record:
        """What becomes of a file before the graph."""
        settings: Record = getattr(self, self.SETTINGS)
        return settings

    @property
    def covered(self) -> dict[str, Any]:
        """What the fingerprint covers beside tensors and architecture."""
        return {self.SETTINGS: self.settings.model_dump()}

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of what the graph reads of one file."""

    @property
    def inputs(self) -> list[str]:
        """What the graph reads of rows, in its order."""
        return [self.INPUT]

    @abstractmethod
    def odd(self) -> str:
        """What in its settings contradicts itself; empty where nothing does."""

    def together(self, most: int) -> int:
        """Files of one run of the graph: no more attention than ``most`` of 512 positions, one at least."""
        return max(1, min(most, most * ATTENTION // self.max_positions**2))

    def fingerprinted(self) -> Self:
        """The same under the identity of the numbers, what they compute and of what. Raises KeyError."""
        return self.model_copy(update={"fingerprint": media_fingerprint_of(self)})


class SortingMediaManifest(MediaManifest, HeadManifest, ABC):
    """Of a base that sorts files."""


M = TypeVar("M", bound=MediaManifest)


def media_fingerprint_of(manifest: MediaManifest) -> str:
    """The identity that what the manifest lists gives. Raises KeyError without its files."""
    body: dict[str, Any] = {
        "tensors": {name: entry.model_dump() for name, entry in manifest.tensors.items()},
        "architecture": {
            "family": manifest.family,
            **({"pooling": manifest.pooling} if isinstance(manifest, HeadManifest) else {}),
            "bits": manifest.bits,
            "block": manifest.block,
            "config": manifest.files[CONFIG].sha256,
        },
        **manifest.covered,
    }
    return digest(manifest.TAG, canonical_json(body))


def parse_media_manifest(kind: type[M], text: str, *, source: str) -> M:
    """Read ``manifest.json`` of a base of this kind. Raises ArtefactError."""
    try:
        manifest = json_as(kind, text)
    except OddError as odd:
        raise ArtefactError(
            f"{source}: {odd}", "build the base again or fetch an intact copy"
        ) from None
    verify_named(manifest.files, manifest.graph, source=source)
    if odd_settings := manifest.odd():
        raise ArtefactError(f"{source}: {odd_settings}", "do not use this base")
    if manifest.graph.inputs != manifest.inputs:
        raise ArtefactError(
            f"{source}: the graph does not read {' and '.join(manifest.inputs)} alone",
            "do not use this base",
        )
    if CONFIG not in manifest.files or media_fingerprint_of(manifest) != manifest.fingerprint:
        raise ArtefactError(
            f"{source}: the fingerprint is not that of what the manifest lists",
            "do not use this base",
        )
    return manifest


def kind_in(text: str, kinds: Iterable[type[M]]) -> type[M] | None:
    """The kind that a ``manifest.json`` says it is of, whatever else is in it; None of no medium.

    Kinds of one medium differ in the key that says what becomes of a file; without any it is the first one.
    """
    task = task_of(text)
    fitting = [kind for kind in kinds if kind.MEDIUM.task == task]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    keys = json.loads(text)  # an object: it names a task
    return next((kind for kind in fitting if kind.SETTINGS in keys), fitting[0])
