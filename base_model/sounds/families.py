"""Families of models that read sounds: a family is a row. (docs/adr/0045, 0080, 0084)"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import ArtefactError


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundFamily:
    """An encoder of sounds by Hugging Face's ``model_type``.

    ``own``: Hugging Face's class whose head means here what it means there. ``prefix``: attribute of the
    encoder in it. ``around``: what stands before the encoder's names in checkpoints of other classes.
    ``samples``: whether it hears these, and not features of them. ``layers``: what the module path of every
    linear in a layer has in it. ``key``: last path component of the linears that give keys.
    """

    model_type: str
    own: str
    prefix: str = "encoder"
    around: str = ""
    samples: bool = False
    layers: str = ".layers."
    key: str = "k_proj"


FAMILIES = {
    family.model_type: family
    for family in (
        SoundFamily(model_type="whisper", own="WhisperForAudioClassification", around="model."),
        SoundFamily(
            model_type="wav2vec2",
            own="Wav2Vec2ForSequenceClassification",
            prefix="wav2vec2",
            samples=True,
        ),
        SoundFamily(
            model_type="hubert",
            own="HubertForSequenceClassification",
            prefix="hubert",
            samples=True,
        ),
    )
}
BIASED = "the scores of its attention hang on how far apart positions are, by numbers of its own"
REFUSED = {
    "wavlm": BIASED,
    "data2vec-audio": "its positions are several convolutions with norms between them",
    "unispeech": "nobody has compared its answers",
    "unispeech-sat": "nobody has compared its answers",
    "sew": "it makes fewer positions, and as many again behind its layers",
    "wav2vec2-bert": "its layers have convolutions between their linears",
    "wav2vec2-conformer": "its layers have convolutions between their linears",
    "audio-spectrogram-transformer": "its features are Kaldi's, which are not computed here",
    "clap": "it compares sounds with texts",
}


def sound_family_of(model_type: str, *, source: str) -> SoundFamily:
    """The family. Raises ArtefactError that names the ones that work."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    why = f": {REFUSED[model_type]}" if model_type in REFUSED else ""
    raise ArtefactError(
        f"{source}: model type `{model_type}` cannot be a base for audio classification{why}",
        f"use a model of: {', '.join(FAMILIES)}",
    )
