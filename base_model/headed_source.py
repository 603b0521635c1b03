"""What is asked of every source of a base with a head, whatever it reads: config, labels, tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from base_model.checkpoint import as_float
from base_model.places import CONFIG
from base_model.source_files import check_classes, first_line
from protocol.errors import ArtefactError
from protocol.manifest import MOST_LAYERS

Shapes = dict[str, tuple[int, ...]]
LAYERS = ("num_hidden_layers", "n_layers", "encoder_layers", "decoder_layers")
COMPLETE = "fetch a complete checkpoint"
OWN_CONFIG = "take the config.json that belongs to the checkpoint"


def check_stated(
    source: str,
    document: dict[str, Any],
    stated: Iterable[tuple[str, ...]],
    kinds: tuple[type, ...] = (int,),
) -> None:
    """One of each of the names is said: a default would go unnoticed. Raises ArtefactError."""
    for names in stated:
        if not any(isinstance(document.get(name), kinds) for name in names):
            raise ArtefactError(
                f"{source}: {CONFIG} does not say `{names[0]}`, which would be guessed", OWN_CONFIG
            )


def check_plain(source: str, document: dict[str, Any]) -> None:
    """The checkpoint has the model's own numbers, and needs no program of its own. Raises ArtefactError."""
    check_classes(source, document)
    if document.get("quantization_config") or document.get("compression_config"):
        raise ArtefactError(
            f"{source}: the checkpoint is quantised already",
            "name the model as it was before; fedge quantises by itself",
        )
    if document.get("auto_map"):
        raise ArtefactError(
            f"{source}: it needs code of its own (`auto_map`)", "use a model that does not"
        )


def config_of(path: Path, document: dict[str, Any]) -> PretrainedConfig:
    """What transformers makes of a ``config.json``. Raises ArtefactError."""
    for name in LAYERS:  # all of them would be laid out before a tensor is looked at
        count = document.get(name)
        if isinstance(count, int) and not 1 <= count <= MOST_LAYERS:
            raise ArtefactError(f"{path}: `{name}` is not from 1 to {MOST_LAYERS}", OWN_CONFIG)
    try:
        config: PretrainedConfig = AutoConfig.for_model(**document)
    except Exception as error:  # its checks raise types of their own
        raise ArtefactError(
            f"{path}: transformers does not take it: {first_line(error)}", "correct it"
        ) from None
    return config


def labels_of(source: str, config: PretrainedConfig, weight: Tensor) -> list[str]:
    """Names of the head's labels in the order of the logits. Raises ArtefactError."""
    names = dict(config.id2label or {})
    count = rows_of(weight)
    if sorted(names) != list(range(count)):
        raise ArtefactError(
            f"{source}: the head has {count} labels, {CONFIG} names {len(names)}", OWN_CONFIG
        )
    return [str(names[index]) for index in range(count)]


def rows_of(weight: Tensor) -> int:
    """Labels of a head; none of a number by itself, which is no head."""
    return weight.shape[0] if weight.ndim else 0


def shapes_of(source: str, make: Callable[[], nn.Module]) -> Shapes:
    """The parameters of a model; nothing is allocated. Raises ArtefactError where there is none."""
    try:
        with torch.device("meta"):
            model = make()
    except Exception as error:  # whatever a config can make a constructor do
        raise ArtefactError(
            f"{source}: its {CONFIG} gives no model: {first_line(error)}", "correct it"
        ) from None
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


def fitted(
    source: str,
    shapes: Shapes,
    tensors: dict[str, Tensor],
    *,
    without: tuple[str, ...] = (),
    lacking: Callable[[list[str]], str] = lambda absent: COMPLETE,
) -> dict[str, Tensor]:
    """The parameters of ``shapes``, each there, of its shape, in float32. Raises ArtefactError.

    ``without``: ends of what a checkpoint may have that is no parameter; ``lacking``: what to do about
    names that it lacks.
    """
    if absent := sorted(shapes.keys() - tensors.keys()):
        raise ArtefactError(
            f"{source}: the checkpoint lacks {', '.join(absent[:3])} ({len(absent)} tensors in all)",
            lacking(absent),
        )
    odd = sorted(name for name in tensors.keys() - shapes.keys() if not name.endswith(without))
    if odd:
        raise ArtefactError(
            f"{source}: the checkpoint has {odd[0]}, for which its {CONFIG} has no place "
            f"({len(odd)} tensors in all)",
            OWN_CONFIG,
        )
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ArtefactError(
                f"{source}: {name} is {tuple(tensors[name].shape)} in the checkpoint, and by "
                f"{CONFIG} {shape}",
                OWN_CONFIG,
            )
    return {name: as_float(name, tensors[name], source=source) for name in shapes}


def own_head(
    name: str,
    config: PretrainedConfig,
    own: str,
    outside: dict[str, Tensor],
    needed: Iterable[str],
) -> tuple[bool, str]:
    """Whether the source's head means here what it means there, and a sentence for the publisher.

    ``own``: the class of which it does; ``outside``: tensors that are not the encoder's, of which such a head
    has ``needed``. Raises ArtefactError where it lacks one.
    """
    kinds = list(config.architectures or ())
    if kinds[:1] == [own]:
        for tensor in needed:
            if tensor not in outside:
                raise ArtefactError(
                    f"{name}: it is a {own}, and the checkpoint lacks {tensor}",
                    f"{COMPLETE}, or pass the encoder alone",
                )
        return True, "the source's own head and the names of its labels are kept"
    if outside:
        kind = kinds[0] if kinds else "a model of unknown kind"
        return False, f"left out: {min(outside)} and what belongs to it ({kind})"
    return False, "the source has no head: adapters bring one"
