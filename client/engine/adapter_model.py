"""The trainable adapter on torch's base, under the names of the protocol: what peft makes of a plan. (P-2)"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from peft import PeftConfig, get_peft_config, get_peft_model
from torch import nn

from base_model.beyond_peft import MixedHead, freeze_idle, insert_sequence
from base_model.bottlenecks import insert_bottlenecks
from base_model.hybrid import HybridModel
from base_model.quant_linear import refuse_merge
from base_model.relative import relate
from client.engine.interface import Values
from protocol.layout import HEAD_PARTS, Layout, Tensors
from protocol.manifest import TYPE_IDS
from protocol.methods.hybrid import Hybrid
from protocol.methods.lora import lora_config
from protocol.peft_format import peft_config
from protocol.recipe import Recipe

if TYPE_CHECKING:
    from base_model.media_store import OpenMedia
    from base_model.store import OpenBase

NAME = "trained"  # not "lora…": peft looks for that in names


class AdapterModel:
    """The adapter of ``recipe`` on ``base``, which it wraps: one adapter per opened base."""

    def __init__(self, base: OpenBase | OpenMedia, recipe: Recipe) -> None:
        """Wrap ``base``, opened with the plan's number of labels. Raises TypeError for another."""
        self.base, self.recipe = base, recipe
        self.layout: Layout = recipe.layout
        shapes = {spec.name: spec.shape for spec in self.layout.specs}
        if recipe.plan.head is not None and recipe.plan.head.directions is not None:
            setattr(base.model, base.manifest.head.path, MixedHead(shapes))
        if isinstance(recipe.method, Hybrid):
            config, constants = peft_config(recipe, base_name=""), recipe.constants
            hybrid = HybridModel(base.model, recipe.method, config, constants, shapes)
            self._peft, self._parameters = hybrid.outer, hybrid.parameters
        else:
            self._peft = self._adapted()
            self._parameters = self._parameters_by_name()
        refuse_merge(self._peft)
        self._peft.eval()  # a frozen base is not regularised: its activations are the device's
        self._check_trainable()
        self._parts = frozenset(spec.part for spec in self.layout.specs)

    def _adapted(self) -> nn.Module:
        """What peft makes of the method, and what it lacks."""
        base, recipe = self.base, self.recipe
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's remarks about configs without a hub id
            adapted = get_peft_model(base.model, self._config(), adapter_name=NAME)
        relate(base.model, NAME)
        freeze_idle(base.model, NAME, recipe.method)
        shapes = {spec.name: spec.shape for spec in self.layout.specs}
        insert_sequence(base.model, NAME, recipe.method, shapes)
        if not recipe.method.of_peft:
            own = ((s.name, s.shape) for s in self.layout.specs if s.part not in HEAD_PARTS)
            insert_bottlenecks(base.model, own, recipe.constants["scaling"], NAME)
        return adapted

    def load(self, tensors: Values) -> None:
        """Copy the values of a full adapter in place. Raises ArtefactError if they do not fit."""
        self.layout.flatten(tensors)  # checks names and shapes
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(tensors[name], np.float32)))

    def tensors(self) -> Tensors:
        """A copy of the adapter's values by canonical name, float32."""
        return {
            name: parameter.detach().to("cpu", torch.float32).numpy().copy()
            for name, parameter in self._parameters.items()
        }

    def train_only(self, parts: Iterable[str]) -> dict[str, nn.Parameter]:
        """Let only tensors of ``parts`` require gradients; returns those, by canonical name."""
        trained = frozenset(parts)
        if trained != self._parts:
            self._parts = trained
            for spec in self.layout.specs:
                self._parameters[spec.name].requires_grad_(spec.part in trained)
        return {
            spec.name: self._parameters[spec.name]
            for spec in self.layout.specs
            if spec.part in trained
        }

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Outputs (rows, outputs) of token ids, mask and, of pairs, types, all (rows, tokens) int64."""
        typed = {} if types is None else {TYPE_IDS: types}
        return self.answer({"input_ids": ids, "attention_mask": mask, **typed})

    def answer(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Outputs (rows, outputs) of what the answering graph reads, by the names of its inputs."""
        named = dict(inputs)
        if TYPE_IDS in named:  # behind a prompt peft drops what is called so
            named["segments"] = named.pop(TYPE_IDS)
        logits: torch.Tensor = self._peft(**named).logits
        return logits

    @property
    def device(self) -> torch.device:
        """Where the adapter and its base are."""
        return next(iter(self._parameters.values())).device

    def _config(self) -> PeftConfig:
        """That of a published adapter, without what says where it came from."""
        config = peft_config(self.recipe, base_name="")
        for key in ("auto_mapping", "base_model_name_or_path", "inference_mode"):
            del config[key]
        if not self.recipe.method.of_peft:
            config = {"task_type": config["task_type"]}
            config |= lora_config(targets="dummy-target-modules", rank=1, alpha=1.0)
        config["modules_to_save"] = [self.base.manifest.head.path]
        return get_peft_config(config)

    def _parameters_by_name(self) -> dict[str, nn.Parameter]:
        """What peft made, by canonical name: it keeps a parameter under its saved name and the adapter's."""
        parameters_of_peft = {
            name.replace(f".modules_to_save.{NAME}.", ".").replace(f".{NAME}", ""): parameter
            for name, parameter in self._peft.named_parameters()
            if f".{NAME}" in name
        }
        method = self.recipe.method
        parameters = {}
        for spec in self.layout.specs:
            own = spec.part not in HEAD_PARTS
            name = method.trained_name(spec.name) if own else method.saved_prefix + spec.name
            parameter = parameters_of_peft.get(name)
            if parameter is None or tuple(parameter.shape) != spec.shape:
                shape = "nothing" if parameter is None else str(tuple(parameter.shape))
                raise TypeError(
                    f"{spec.name}: {shape} in the model, {spec.shape} here; was the base opened with the "
                    "plan's number of labels?"
                )
            parameters[spec.name] = parameter
        return parameters

    def _check_trainable(self) -> None:
        """What peft made trainable is what the layout names: no more and no less. (P-2.1)"""
        by_peft = {id(p): name for name, p in self._peft.named_parameters() if p.requires_grad}
        by_layout = {id(p): name for name, p in self._parameters.items()}
        if one_sided := set(by_peft) ^ set(by_layout):
            name = (by_peft | by_layout)[min(one_sided)]
            raise TypeError(f"{name} is trainable on one side only (peft, layout)")
