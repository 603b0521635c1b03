"""What a source's ``preprocessor_config.json`` says becomes of samples. (P-1.16)

How long a sound is, neither it nor the config says: whoever builds the base does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from base_model.preprocessor_file import FILE, int_of, shown, verify_known
from base_model.source_files import read_object
from protocol.documents import OddError, value_as
from protocol.errors import ArtefactError
from protocol.waveform_manifest import Waveform

CLASS = "Wav2Vec2FeatureExtractor"
REMEDY = f"take the file that belongs to the checkpoint, of a {CLASS}"
WITHOUT_EFFECT = {"processor_class", "return_tensors", "model_input_names"}
READ = {
    *("feature_extractor_type", "feature_size", "sampling_rate", "do_normalize"),
    *("return_attention_mask", "padding_value", "padding_side"),
}
FIXED = {
    "feature_size": 1,
    "padding_value": 0,
    "padding_side": "right",
}  # of every one that is read


def read_waveform(folder: Path, *, seconds: int) -> Waveform:
    """Of a source, ``seconds`` of which are heard. Raises ArtefactError."""
    path = folder / FILE
    document = read_object(path)
    try:
        asked = _waveform(document, seconds)
        if reason := asked.odd():
            raise ValueError(reason)
    except (ValueError, KeyError) as error:
        reason = f"it does not say `{error.args[0]}`" if isinstance(error, KeyError) else str(error)
        raise ArtefactError(f"{path}: {reason}", REMEDY) from None
    return asked


def _waveform(document: dict[str, Any], seconds: int) -> Waveform:
    verify_known(document, READ | WITHOUT_EFFECT)
    kind = document.get("feature_extractor_type", CLASS)  # old files do not say it
    if kind != CLASS:
        raise ValueError(f"an extractor {shown(kind)} is not known here")
    for name, value in FIXED.items():
        if document.get(name, value) != value:
            raise ValueError(f"`{name}` is {shown(document[name])}; it is {shown(value)} here")
    fields = {
        "kind": "wav2vec2-samples",
        "rate": int_of("sampling_rate", document),
        "seconds": seconds,
        "normalised": document["do_normalize"],
        "masked": document["return_attention_mask"],
    }
    try:
        return value_as(Waveform, fields)
    except OddError as odd:
        raise ValueError(str(odd)) from None
