"""Where an experiment's base comes from, by content: seen without torch, before anything is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from base_model.decoder.sources import is_file
from base_model.denoisers.source import source_digests
from base_model.places import PACKAGE, Place, locate, locate_file
from protocol.decoder_manifest import DECODER
from protocol.media import DRAWN
from simulations.experiment import BaseSource, expanded
from storage.regular import sha256_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a base comes from: what it is called, digests of all that matters and of the weights."""

    shown: str
    digest: str
    weights: str


def origin_of(source: BaseSource, task: str, folder: Path) -> Origin:
    """Raises MachineError or ArtefactError for what is not on this machine."""
    text = expanded(source.source)
    if task == DECODER and is_file(text):
        path = locate_file(text, beside=folder)
        digest = sha256_of(path)
        return Origin(shown=path.stem, digest=digest, weights=digest)
    if task == DRAWN.task:
        root = folder / Path(text).expanduser()
        digests = source_digests(root)
        return Origin(shown=root.resolve().name, digest=digests[0], weights=digests[1])
    place = locate(text, beside=folder)
    return Origin(shown=_shown(text, place), digest=place.digest(), weights=place.weights_digest())


def _shown(source: str, place: Place) -> str:
    if source.startswith(PACKAGE):
        return source.removeprefix(PACKAGE)
    return source if "snapshots" in place.root.parts else place.root.name
