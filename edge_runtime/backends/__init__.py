"""What a device needs of a base, whichever kind it is: one class per kind, by what the manifest says.

Updates, the store, the probe and whatever follows the store know adapters only through this. (docs/adr/0061)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from edge_runtime.base import read_any_manifest
from edge_runtime.store import GRAPH
from protocol.audio_manifest import AudioManifest
from protocol.decoder_manifest import DecoderManifest, WritingManifest
from protocol.denoiser_manifest import DenoiserManifest
from protocol.image_manifest import ImageManifest
from protocol.manifest import Manifest
from protocol.manifests import AnyManifest
from protocol.seq2seq_manifest import Seq2SeqManifest
from protocol.waveform_manifest import WaveformManifest

if TYPE_CHECKING:
    from edge_runtime.probe import Clock, Examined, Probe
    from edge_runtime.settings import Device
    from protocol.transparency.policy import Policy

Adapter = TypeVar("Adapter")


class Backend(Protocol[Adapter]):
    """An opened base. One serves many threads; it holds no adapter: whoever answers does."""

    ITEM: str  # what a latency is measured of

    def load(self, folder: Path, policy: Policy | None = None) -> Adapter:
        """Check a release against this base, load it, and have it answer once. (P-5.4)

        With a ``policy`` it has to be a release in a log that this trusts. Raises ArtefactError, ProofError.
        """
        ...

    def questions(self, probe: Probe) -> Sequence[Any]:
        """The device's own rows as this base reads them, before any release is tried.

        What is wrong with them, or missing for them, is no release's fault. Raises DataError for the first
        row that the base cannot read, MachineError for what this machine lacks, ArtefactError for chats on a
        base that knows none.
        """
        ...

    def examine(
        self, adapter: Adapter, probe: Probe, questions: Sequence[Any], clock: Clock
    ) -> Examined:
        """Have an adapter answer ``questions``, the probe's, and time it by ``clock``, in seconds.

        Raises DeliveryError `probe.labels` for rows that it does not answer, ArtefactError for answers that
        are none, MachineError for what this machine lacks.
        """
        ...


# The module and the function that opens: a device that answers with labels loads nothing that writes text.
OPENERS: dict[type[AnyManifest], tuple[str, str]] = {
    Manifest: ("encoder", "open_encoder"),
    ImageManifest: ("encoder", "open_encoder"),
    AudioManifest: ("encoder", "open_encoder"),
    WaveformManifest: ("encoder", "open_encoder"),
    DecoderManifest: ("writing", "open_writing"),
    Seq2SeqManifest: ("writing", "open_writing"),
    DenoiserManifest: ("drawing", "open_drawing"),
}


def open_backend(base: Path, *, threads: int, cache: Path | None = None) -> Backend[Any]:
    """Open a base as what its manifest says. Raises ArtefactError.

    ``cache``: folder for what makes opening it again cheaper, where its kind has such a thing.
    """
    module, name = OPENERS[type(read_any_manifest(base))]
    opener: Callable[..., Backend[Any]] = getattr(import_module(f"{__name__}.{module}"), name)
    return opener(base, threads=threads, cache=cache)


def open_device(device: Device) -> Backend[Any]:
    """The base of a device. Raises ArtefactError."""
    return open_backend(device.base, threads=device.threads, cache=device.store / GRAPH)


def draws(base: Path) -> bool:
    """Whether a base draws images. Raises ArtefactError for a folder that is no base."""
    return isinstance(read_any_manifest(base), DenoiserManifest)


def writes_text(base: Path) -> bool:
    """Whether a base writes text. Raises ArtefactError for a folder that is no base."""
    return isinstance(read_any_manifest(base), WritingManifest)
