"""Which text ``open_adapter.py`` of a PEFT folder is. (P-5.1)"""

from __future__ import annotations

from protocol.audio_manifest import AudioManifest
from protocol.audio_opener import AUDIO_OPENER
from protocol.image_manifest import ImageManifest
from protocol.image_opener import IMAGE_OPENER
from protocol.manifest import Manifest
from protocol.manifests import AnyManifest
from protocol.page_opener import PAGE_OPENER
from protocol.peft_opener import OPENER


def opener_of(manifest: AnyManifest) -> str:
    """The text for an adapter of a base with a head, or of one that writes and needs it."""
    if isinstance(manifest, ImageManifest):
        return IMAGE_OPENER
    if isinstance(manifest, Manifest) and manifest.boxed:
        return PAGE_OPENER
    return AUDIO_OPENER if isinstance(manifest, AudioManifest) else OPENER
