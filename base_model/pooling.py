"""Which pooling a base takes, and whether the source's own head comes with it; each with its reason.

A frozen base cannot learn another pooling, and a head answers rightly only on the one it was trained
with. So the two are chosen together: the source's head comes along exactly where it means what it means
in transformers, and a source that says two things is asked about.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor
from transformers import PretrainedConfig

from base_model.families import Family
from base_model.places import Place
from base_model.source_files import read_object
from protocol.errors import ArtefactError

Pooling = Literal["mean", "cls", "pooler"]
CHOOSE = "pass --pooling mean or cls"
OWN = "ForSequenceClassification"
# sentence-transformers' keys of old, and its names of modes
MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The pooling, whether the source's own head is kept, and why, in sentences for the publisher."""

    pooling: Pooling
    head: bool
    reasons: tuple[str, ...]


def choose(
    asked: str, place: Place, config: PretrainedConfig, family: Family, outside: dict[str, Tensor]
) -> Choice:
    """Pooling and head of a source.

    Args:
        asked: ``auto``, or a pooling.
        place: the source; its pooling file speaks where nobody asked.
        config: of the encoder.
        family: of the encoder.
        outside: the checkpoint's tensors that are not the encoder's.

    Raises ArtefactError where the source contradicts itself or pools in a way that is not built.
    """
    if asked != "auto" and asked not in get_args(Pooling):
        raise ArtefactError(f"pooling `{asked}` is not known", "use auto, mean, cls or pooler")
    head, why_head = _has_head(place.name, config, family, outside)
    if asked != "auto":
        pooling: Pooling = asked  # type: ignore[assignment]
        reasons = [f"pooling {asked}: asked for"]
    else:
        pooling, reason = _by_source(place, family, head)
        reasons = [f"pooling {pooling}: {reason}"]
    if head and pooling != "pooler":
        head, why_head = False, f"the source's own head is left out: it is on pooler, not {pooling}"
    if pooling != "pooler" and "Normalize" in place.after:
        reasons.append(
            "the source scales its vectors to length 1; the base leaves them as they are"
        )
    if head:
        why_head = "the source's own head and the names of its labels are kept"
    return Choice(pooling=pooling, head=head, reasons=(*reasons, *filter(None, [why_head])))


def _by_source(place: Place, family: Family, head: bool) -> tuple[Pooling, str]:
    if place.pooling is None:
        if head:
            return "pooler", "the source has a classifier, and transformers puts it on that"
        return family.default_pooling, (
            f"usual for {family.model_type}, as the source has no 1_Pooling; "
            "of a sentence encoder --pooling mean may be much better"
        )
    told = _of_file(place.pooling)
    if head:
        raise ArtefactError(
            f"{place.name}: it pools by {told} as a sentence encoder, and by its first token as a "
            "classifier",
            f"pass --pooling pooler for its own labels, or --pooling {told} for its sentence vectors",
        )
    if odd := [kind for kind in place.after if kind != "Normalize"]:
        raise ArtefactError(
            f"{place.name}: a {odd[0]} module comes after its pooling, which a base has not",
            f"pass --pooling {told} to leave it out, or use another source",
        )
    return told, f"{place.pooling.parent.name}/{place.pooling.name} of the source says so"


def _of_file(path: Path) -> Pooling:
    """The one pooling that sentence-transformers' file names. Raises ArtefactError."""
    document = read_object(path)
    modes: Any = document.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in MODES.items() if document.get(key)]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not all(isinstance(mode, str) for mode in modes):
        raise ArtefactError(f"{path}: its pooling cannot be read", CHOOSE)
    if len(modes) != 1:
        several = " and ".join(modes) if modes else "nothing"
        raise ArtefactError(f"{path}: it pools by {several}, a base by one", CHOOSE)
    if modes[0] not in ("mean", "cls"):
        raise ArtefactError(f"{path}: pooling by {modes[0][:40]} is not supported", CHOOSE)
    return modes[0]


def _has_head(
    name: str, config: PretrainedConfig, family: Family, outside: dict[str, Tensor]
) -> tuple[bool, str]:
    """Whether the checkpoint classifies texts. Raises ArtefactError for a part of a head."""
    kinds = list(config.architectures or ())
    needed = [
        f"{layer}.{kind}"
        for layer in filter(None, [family.dense and family.dense[0], family.out])
        for kind in ("weight", "bias")
    ]
    absent = [tensor for tensor in needed if tensor not in outside]
    if any(kind.endswith(OWN) for kind in kinds):
        if absent:
            raise ArtefactError(
                f"{name}: it is a {kinds[0]}, and the checkpoint lacks {absent[0]}",
                "fetch a complete checkpoint, or pass the encoder alone",
            )
        return True, ""
    if not kinds and not absent:
        return True, ""
    others = sorted(tensor for tensor in outside if tensor.split(".")[0] not in ("cls", "lm_head"))
    if others:
        return False, f"left out: {others[0]} and what belongs to it ({', '.join(kinds) or '?'})"
    return False, ""
