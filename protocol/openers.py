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
from protocol.waveform_manifest import WaveformManifest
from protocol.waveform_opener import WAVEFORM_OPENER


def opener_of(manifest: AnyManifest) -> str:
    """The text for an adapter of a base with a head, or of one that writes and needs it."""
    match manifest:
        case ImageManifest():
            return IMAGE_OPENER
        case AudioManifest():
            return AUDIO_OPENER
        case WaveformManifest():
            return WAVEFORM_OPENER
        case Manifest() if manifest.boxed:
            return PAGE_OPENER
        case _:
            return OPENER
