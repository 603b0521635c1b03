"""A base's manifest, whichever task it was built for."""

from __future__ import annotations

import hashlib

from protocol.audio_manifest import AudioManifest
from protocol.decoder_manifest import DecoderManifest, is_decoder, parse_decoder_manifest
from protocol.denoiser_manifest import DenoiserManifest
from protocol.image_manifest import ImageManifest
from protocol.manifest import Manifest, parse_manifest
from protocol.media_manifest import kind_in, parse_media_manifest
from protocol.seq2seq_manifest import Seq2SeqManifest, is_seq2seq, parse_seq2seq_manifest
from protocol.waveform_manifest import WaveformManifest

# What a fingerprint covers beside config.json and tokenizer.json. (P-1.3, P-1.13, P-1.15 to P-1.18)
COVERED = {
    *("fingerprint", "tensors", "family", "pooling", "bits", "block"),
    *("embedding_bits", "affine", "tied", "pixels", "log_mel", "waveform"),
    *("schedule", "classes"),
}
OfMedium = ImageManifest | AudioManifest | WaveformManifest
OF_MEDIA: tuple[type[OfMedium | DenoiserManifest], ...] = (
    *(ImageManifest, AudioManifest, WaveformManifest),
    DenoiserManifest,
)

AnyManifest = Manifest | OfMedium | DecoderManifest | Seq2SeqManifest | DenoiserManifest
SortingManifest = Manifest | OfMedium


def parse_any_manifest(text: str, *, source: str) -> AnyManifest:
    """A ``manifest.json``, whichever task its base is for. Raises ArtefactError."""
    if is_decoder(text):
        return parse_decoder_manifest(text, source=source)
    if is_seq2seq(text):
        return parse_seq2seq_manifest(text, source=source)
    if kind := kind_in(text, OF_MEDIA):
        return parse_media_manifest(kind, text, source=source)
    return parse_manifest(text, source=source)


def graphs_digest(manifest: AnyManifest) -> str:
    """What facts call a base's graphs by: SHA-256 in hex of the one; of several, of theirs. (P-9.4)"""
    digests = [manifest.files[graph.file].sha256 for graph in manifest.graphs()]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def uncovered(manifest: AnyManifest) -> list[str]:
    """The keys of a manifest that its fingerprint does not cover."""
    return [name for name in type(manifest).model_fields if name not in COVERED]
