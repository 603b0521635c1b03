"""A base's manifest, whichever task it was built for."""

from __future__ import annotations

from protocol.decoder_manifest import DecoderManifest, is_decoder, parse_decoder_manifest
from protocol.manifest import Manifest, parse_manifest

AnyManifest = Manifest | DecoderManifest


def parse_any_manifest(text: str, *, source: str) -> AnyManifest:
    """A ``manifest.json``, whichever task its base is for. Raises ArtefactError."""
    parse = parse_decoder_manifest if is_decoder(text) else parse_manifest
    return parse(text, source=source)
