"""Hybrids in torch, which peft lacks: its tuners one inside the other, in the order of the answering graph.

A linear with all of them computes ``scale * (W x + bias + shift) + B A x``, one that narrows the same of
``scale * x`` alone, then a bottleneck adds to that (P-1.11): so what shifts is innermost, and
a prompt or a prefix is around the whole model.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_config, get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from base_model.beyond_peft import insert_sequence
from base_model.bottlenecks import insert_bottlenecks
from base_model.relative import relate
from protocol.documents import parse_json
from protocol.forms import HEAD
from protocol.layout import Tensors
from protocol.methods.base import Constants
from protocol.methods.hybrid import Hybrid, of_member
from protocol.methods.lora import lora_config
from protocol.peft_format import CONFIG_FILE, Published

Config = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
INNERMOST_FIRST = ("shift", "scale", "beside", "narrow scale", "behind", "around")


class HybridModel:
    """A model with the members of a hybrid in it, at what peft begins them with.

    ``outer`` is what answers; ``parameters`` are the adapter's tensors by canonical name, the head's among
    them.
    """

    def __init__(
        self, model: nn.Module, hybrid: Hybrid, config: Config, constants: Constants, shapes: Shapes
    ) -> None:
        """Wrap ``model``; ``config`` as in a PEFT folder, ``constants`` the hybrid's, ``shapes`` by name."""
        members: list[Config] = config["members"]
        around, settings = (
            len(members),
            lora_config(targets="dummy-target-modules", rank=1, alpha=1.0),
        )
        for number, own in _in_order(members, hybrid):
            if hybrid.members[number].place == "around":
                around, settings = number, dict(own)
            elif hybrid.members[number].of_peft:
                _inject(model, own, _name(number))
            else:
                own_shapes = of_member(number, shapes).items()
                insert_bottlenecks(model, own_shapes, constants[f"{number}.scaling"], _name(number))
        settings["task_type"] = config["task_type"]
        settings["modules_to_save"] = (
            [HEAD] if any(n.startswith(f"{HEAD}.") for n in shapes) else None
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's remarks about configs without a hub id
            self.outer = get_peft_model(
                model, get_peft_config(settings), adapter_name=_name(around)
            )
        _use_all(model)
        for number, method in enumerate(hybrid.members):
            relate(model, _name(number))
            insert_sequence(model, _name(number), method, of_member(number, shapes))
        self.outer.requires_grad_(False)
        named = _named(model, self.outer, len(members))
        self.parameters = {name: named[_key(name, hybrid)] for name in shapes}
        for parameter in self.parameters.values():
            parameter.requires_grad_()


def open_hybrid(
    model: nn.Module, adapter: Path, published: Published, tensors: Tensors
) -> nn.Module:
    """``model`` with the published ``tensors`` of a PEFT folder, its head among them, in eval mode."""
    assert isinstance(published.method, Hybrid)
    config = parse_json((adapter / CONFIG_FILE).read_bytes())
    shapes = {name: value.shape for name, value in tensors.items()}
    built = HybridModel(model, published.method, config, published.constants, shapes)
    with torch.no_grad():
        for name, parameter in built.parameters.items():
            parameter.copy_(torch.from_numpy(tensors[name]))
    return built.outer.eval()


def _name(number: int) -> str:
    """What peft calls a member's adapter."""
    return f"member_{number}"


def _key(name: str, hybrid: Hybrid) -> str:
    """What :func:`_named` calls a tensor."""
    number, _, own = name.partition(".")
    if number == HEAD:
        return name
    method = hybrid.members[int(number)]
    return f"{number}.{method.trained_name(own).removeprefix(method.saved_prefix)}"


def _in_order(members: list[Config], hybrid: Hybrid) -> list[tuple[int, Config]]:
    """Numbers and settings from within; factors of features are two, by what they scale."""
    placed: list[tuple[str, int, Config]] = []
    for number, config in enumerate(members):
        place, narrow = hybrid.members[number].place, config.get("feedforward_modules")
        if narrow is None:
            placed.append((place, number, config))
            continue
        wide = [path for path in config["target_modules"] if path not in narrow]
        for where, paths, inputs in ((place, wide, []), (f"narrow {place}", narrow, narrow)):
            if paths:
                part = {"target_modules": paths, "feedforward_modules": inputs}
                placed.append((where, number, {**config, **part}))
    placed.sort(key=lambda each: INNERMOST_FIRST.index(each[0]))
    return [(number, config) for _, number, config in placed]


def _inject(model: nn.Module, config: Config, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a tuner around another
        inject_adapter_in_model(get_peft_config(dict(config)), model, name)


def _use_all(model: nn.Module) -> None:
    """A layer with two adapters of one kind uses the first alone, unless told otherwise."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            names = {name for kind in layer.adapter_layer_names for name in getattr(layer, kind)}
            layer.set_adapter(sorted(names))


def _named(inner: nn.Module, outer: nn.Module, members: int) -> dict[str, nn.Parameter]:
    """Parameters by member's number and peft's name without the adapter's; the head's by theirs."""
    prompts = ((n, p) for n, p in outer.named_parameters() if n.startswith("prompt_encoder."))
    named = {}
    for name, parameter in [*inner.named_parameters(), *prompts]:
        plain = name.replace(".base_layer", "")
        for number in range(members + 1):
            own = plain.replace(f".{_name(number)}", "")
            if own == plain:
                continue
            if own.startswith(f"{HEAD}.modules_to_save."):
                named[own.replace(".modules_to_save", "")] = parameter
            else:
                named[f"{number}.{own}"] = parameter
    return named
