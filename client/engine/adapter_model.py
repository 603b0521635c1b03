"""The trainable adapter on torch's base, under the names of the protocol: what peft makes of a plan. (P-2)"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from base_model.quant_linear import refuse_merge
from client.engine.interface import Values
from protocol.adapter import (
    LORA_A,
    LORA_B,
    LORA_R,
    adapter_layout,
    lora_scaling,
    target_linears,
)
from protocol.layout import Layout, Tensors, TensorSpec
from protocol.plan import Plan
from protocol.rules import Role, rule_named

if TYPE_CHECKING:
    from base_model.store import OpenBase

NAME = "trained"  # not "lora…": peft looks for that in names


class AdapterModel:
    """The adapter of ``plan`` on ``base``, which it wraps: one adapter per opened base."""

    def __init__(self, base: OpenBase, plan: Plan) -> None:
        """Wrap ``base``, opened with the plan's number of labels. Raises TypeError for another."""
        self.base, self.plan = base, plan
        self.layout: Layout = adapter_layout(plan, base.manifest)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's remarks about configs without a hub id
            self._peft = get_peft_model(base.model, self._config(), adapter_name=NAME)
        refuse_merge(self._peft)
        self._peft.eval()  # a frozen base is not regularised: its activations are the device's
        if rule_named(plan.rule.name).has_core:
            self._insert_cores()
        self._parameters = {spec.name: self._parameter(spec) for spec in self.layout.specs}
        self._check_trainable()
        self._roles = frozenset(spec.role for spec in self.layout.specs)

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

    def train_only(self, roles: Iterable[Role]) -> dict[str, nn.Parameter]:
        """Let only tensors of ``roles`` require gradients; returns those, by canonical name."""
        trained = frozenset(roles)
        if trained != self._roles:
            self._roles = trained
            for spec in self.layout.specs:
                self._parameters[spec.name].requires_grad_(spec.role in trained)
        return {
            spec.name: self._parameters[spec.name]
            for spec in self.layout.specs
            if spec.role in trained
        }

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Outputs (rows, outputs) of token ids, mask and, of pairs, types, all (rows, tokens) int64."""
        # as `segments`: behind a prompt peft drops what is called token_type_ids
        logits: torch.Tensor = self._peft(input_ids=ids, attention_mask=mask, segments=types).logits
        return logits

    @property
    def device(self) -> torch.device:
        """Where the adapter and its base are."""
        return next(iter(self._parameters.values())).device

    def _config(self) -> LoraConfig | PromptTuningConfig:
        adapter, manifest = self.plan.adapter, self.base.manifest
        saved = [manifest.head.path]
        if adapter.method == "lora":
            return LoraConfig(
                task_type=self.plan.task.PEFT_TASK,
                r=adapter.rank,
                lora_alpha=lora_scaling(self.plan) * adapter.rank,
                lora_dropout=0.0,
                bias="none",
                target_modules=[linear.path for linear in target_linears(adapter, manifest)],
                modules_to_save=saved,
            )
        return PromptTuningConfig(
            task_type=self.plan.task.PEFT_TASK,
            num_virtual_tokens=adapter.tokens,
            token_dim=manifest.embedding_size,
            num_transformer_submodules=1,
            num_attention_heads=1,  # not used by a prompt; peft would guess it from the config
            num_layers=manifest.layers,
            prompt_tuning_init="RANDOM",
            modules_to_save=saved,
        )

    def _lora_layer(self, path: str) -> LoraLayer:
        layer = self.base.model.get_submodule(path)
        if not isinstance(layer, LoraLayer):
            raise TypeError(f"{path} carries no LoRA factors")
        return layer

    def _parameter(self, spec: TensorSpec) -> nn.Parameter:
        if spec.role is Role.PROMPT:
            parameter = self._peft.prompt_encoder[NAME].embedding.weight
        elif spec.role is Role.LORA_A:
            parameter = self._lora_layer(spec.name.removesuffix(LORA_A)).lora_A[NAME].weight
        elif spec.role is Role.LORA_B:
            outer = self._lora_layer(spec.name.removesuffix(LORA_B)).lora_B[NAME]
            parameter = (outer[1] if isinstance(outer, nn.Sequential) else outer).weight
        elif spec.role is Role.LORA_R:
            parameter = self._lora_layer(spec.name.removesuffix(LORA_R)).lora_B[NAME][0].weight
        else:
            path, _, kind = spec.name.rpartition(".")
            wrapper = self.base.model.get_submodule(path)
            if not isinstance(wrapper, ModulesToSaveWrapper):
                raise TypeError(f"{path} is not trained beside the adapter")
            parameter = getattr(wrapper.modules_to_save[NAME], kind)
        if tuple(parameter.shape) != spec.shape or parameter.dtype != torch.float32:
            raise TypeError(
                f"{spec.name}: {tuple(parameter.shape)} {parameter.dtype} in the model, {spec.shape} here; "
                "was the base opened with the plan's number of labels?"
            )
        return parameter

    def _check_trainable(self) -> None:
        """What peft made trainable is what the layout names: no more and no less. (P-2.1)"""
        by_peft = {id(p): name for name, p in self._peft.named_parameters() if p.requires_grad}
        by_layout = {id(p): name for name, p in self._parameters.items()}
        if one_sided := set(by_peft) ^ set(by_layout):
            name = (by_peft | by_layout)[min(one_sided)]
            raise TypeError(f"{name} is trainable on one side only (peft, layout)")

    def _insert_cores(self) -> None:
        """Put a core (r, r) in front of every B, as one module where peft expects B.

        peft's forward calls that module and does no more with it; whatever else of peft reads
        ``lora_B[name].weight`` (merging, saving) fails instead of leaving the core out.
        """
        rank = self.plan.adapter.rank
        for linear in target_linears(self.plan.adapter, self.base.manifest):
            layer = self._lora_layer(linear.path)
            outer = layer.lora_B[NAME]
            core = nn.Linear(rank, rank, bias=False, device=outer.weight.device)
            layer.lora_B[NAME] = nn.Sequential(core, outer)
