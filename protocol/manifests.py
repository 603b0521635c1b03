"""A base's manifest, whichever task it was built for."""

from __future__ import annotations

from protocol.decoder_manifest import DecoderManifest, is_decoder, parse_decoder_manifest
from protocol.manifest import Manifest, parse_manifest
from protocol.seq2seq_manifest import Seq2SeqManifest, is_seq2seq, parse_seq2seq_manifest

AnyManifest = Manifest | DecoderManifest | Seq2SeqManifest


def parse_any_manifest(text: str, *, source: str) -> AnyManifest:
    """A ``manifest.json``, whichever task its base is for. Raises ArtefactError."""
    if is_decoder(text):
        return parse_decoder_manifest(text, source=source)
    if is_seq2seq(text):
        return parse_seq2seq_manifest(text, source=source)
    return parse_manifest(text, source=source)
