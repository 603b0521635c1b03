"""What can be learnt: the ``[task]`` of a plan, one module per kind; their union is the registry.

A kind has a module of the same name in every role where it differs: here settings, head and metrics;
``client.tasks`` reads rows and scores answers, ``base_model.tasks`` has the losses, ``edge_runtime.tasks``
the answers of a device. (docs/adr/0047)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from protocol.misspelling import nearest
from protocol.tasks.audio_classification import AudioClassification
from protocol.tasks.causal_lm import CausalLm
from protocol.tasks.classification import Classification
from protocol.tasks.document_classification import DocumentClassification
from protocol.tasks.image_classification import ImageClassification
from protocol.tasks.image_generation import ImageGeneration
from protocol.tasks.regression import Regression
from protocol.tasks.seq2seq_lm import Seq2SeqLm
from protocol.variants import variants

TASKS: dict[
    str,
    type[Classification]
    | type[ImageClassification]
    | type[AudioClassification]
    | type[DocumentClassification]
    | type[Regression]
    | type[ImageGeneration]
    | type[CausalLm]
    | type[Seq2SeqLm],
] = {
    task.KIND: task
    for task in (
        *(Classification, Regression, ImageClassification, AudioClassification),
        *(DocumentClassification, ImageGeneration, CausalLm, Seq2SeqLm),
    )
}
# Of labels for files.
MEDIA_TASKS: dict[str, type[ImageClassification] | type[AudioClassification]] = {
    task.KIND: task for task in (ImageClassification, AudioClassification)
}
# What people may call them.
OTHER_NAMES = {
    "sequence-classification": "classification",
    "vision": "image-classification",
    **dict.fromkeys(("text-to-image", "diffusion", "drawing"), "image-generation"),
    **dict.fromkeys(("audio", "speech-classification"), "audio-classification"),
    **dict.fromkeys(("document", "layout"), "document-classification"),
    **dict.fromkeys(("language", "language-modeling", "text-generation", "chat"), "causal-lm"),
    **dict.fromkeys(("translation", "summarization", "seq2seq", "text2text"), "seq2seq-lm"),
}


if TYPE_CHECKING:
    Task = (
        Classification
        | Regression
        | ImageClassification
        | AudioClassification
        | DocumentClassification
        | ImageGeneration
        | CausalLm
        | Seq2SeqLm
    )
else:
    Task = variants("kind", TASKS, default=Classification.KIND)


def refusal(kind: object) -> str:
    """What to do instead of a kind that there is not."""
    if isinstance(kind, str) and kind in OTHER_NAMES:
        return f"it is called `{OTHER_NAMES[kind]}`"
    near = nearest(kind, TASKS, cutoff=0.4) if isinstance(kind, str) else None
    return f"did you mean `{near}`?" if near else f"known kinds: {', '.join(TASKS)}"


def quality_in(metrics: Mapping[str, float]) -> str:
    """What summed metrics say of quality, for people; empty where they say nothing."""
    for task in TASKS.values():
        try:
            value = task.quality_of(metrics)
        except KeyError:  # of another task
            continue
        return "" if value is None else task.QUALITY.said(value)
    return ""
