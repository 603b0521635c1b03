"""What a source's ``preprocessor_config.json`` says becomes of a sound. (P-1.16)

Numbers that it leaves out would be guessed, as transformers does, and steps beyond these would be left out:
both are refused, and the extractors of other models, to which the same keys mean other steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from base_model.preprocessor_file import FILE, int_of, shown, verify_known
from base_model.source_files import read_object
from protocol.audio_manifest import LogMel
from protocol.documents import OddError, value_as
from protocol.errors import ArtefactError

REMEDY = "take the file that belongs to the checkpoint, of a WhisperFeatureExtractor"
CLASS = "WhisperFeatureExtractor"
# Computed anew by whoever opens the file, or of what no model here reads.
WITHOUT_EFFECT = {
    *("processor_class", "return_attention_mask", "mel_filters", "n_samples", "nb_max_frames"),
    *("return_tensors", "model_input_names"),
}
READ = {
    *("feature_extractor_type", "feature_size", "sampling_rate", "hop_length", "chunk_length"),
    *("n_fft", "padding_value", "dither", "do_normalize", "padding_side"),
}


def read_preprocessing(folder: Path, *, bands: int, frames: int) -> LogMel:
    """Of a source whose model reads (``bands``, ``frames``). Raises ArtefactError."""
    path = folder / FILE
    document = read_object(path)
    try:
        asked = _log_mel(document)
        if reason := asked.odd():
            raise ValueError(reason)
        if asked.shape != (bands, frames):
            made = f"{asked.bands} bands in {asked.frames} frames"
            raise ValueError(f"sounds become {made}, and the model reads {bands} in {frames}")
    except (ValueError, KeyError) as error:
        reason = f"it does not say `{error.args[0]}`" if isinstance(error, KeyError) else str(error)
        raise ArtefactError(f"{path}: {reason}", REMEDY) from None
    return asked


def _log_mel(document: dict[str, Any]) -> LogMel:
    verify_known(document, READ | WITHOUT_EFFECT)
    kind = document["feature_extractor_type"]
    if kind != CLASS:
        raise ValueError(f"an extractor {shown(kind)} is not known here")
    for step in ("padding_value", "dither", "do_normalize"):
        if document.get(step):
            raise ValueError(f"`{step}` is {shown(document[step])}; it is not done here")
    if document.get("padding_side", "right") != "right":
        raise ValueError(
            f"`padding_side` is {shown(document['padding_side'])}; silence goes behind"
        )
    rate, hop = int_of("sampling_rate", document), int_of("hop_length", document)
    seconds = int_of("chunk_length", document)
    fields = {
        "kind": "whisper-log-mel",
        "rate": rate,
        "seconds": seconds,
        "window": int_of("n_fft", document),
        "hop": hop,
        "bands": int_of("feature_size", document),
        "frames": rate * seconds // hop if hop > 0 else 0,
        "highest": 8000,
    }
    try:
        return value_as(LogMel, fields)
    except OddError as odd:
        raise ValueError(str(odd)) from None
