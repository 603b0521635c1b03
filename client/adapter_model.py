"""The trainable adapter on the resident base, under the names of the protocol.

One base module serves every client, rank and round of a process: ``peft`` wraps it once, and each
:class:`AdapterModel` is one *named* adapter in that wrapper (its own factors, its own copy of the
head), switched on when it is used. Loading a client's adapter copies values into the parameters
that are there already. A second adapter, the *stack*, may lie frozen beside the trained one: the
sum of all earlier rounds under FLoRA-style stacking, of another rank in every round. (P-2)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from base_model.quant_linear import refuse_merge
from protocol.adapter import (
    LORA_A,
    LORA_B,
    LORA_R,
    adapter_layout,
    lora_scaling,
    target_linears,
)
from protocol.encoding import canonical_json, digest
from protocol.layout import Layout, Tensors, TensorSpec
from protocol.plan import Plan
from protocol.rules import Role, rule_named

if TYPE_CHECKING:
    from base_model.store import OpenBase

# Kept in __dict__, past nn.Module's bookkeeping: as a submodule the wrapper would contain itself.
_WRAPPER = "_fedge_peft"  # of the base module: the peft model around it
_ACTIVE = "_fedge_active"  # of the peft model: what it is switched to


class AdapterModel:
    """One adapter of ``plan`` at ``rank`` on ``base``.

    Several of them may share a base (other ranks, other targets); the one that is used last is
    active. A base is wrapped for one PEFT method; the other needs a base opened again.
    """

    def __init__(self, base: OpenBase, plan: Plan, *, rank: int) -> None:
        """Wrap ``base``, or add a named adapter to the wrapper that is there. ``rank`` from 1."""
        self.base, self.plan, self.rank = base, plan, rank
        self.scaling = lora_scaling(plan)
        self.layout: Layout = adapter_layout(plan, base.manifest, rank=rank)
        self._settings = digest("settings", canonical_json(_settings(plan)))[:12]
        self._name = f"a{rank}_{self._settings}"  # not "lora…": peft looks for that in names
        self._stack_name = f"stack{rank}_{self._settings}"
        self._stack_rank = 0
        self._peft = _wrapped(base, self._name, self._config(rank))
        if rule_named(plan.rule.name).has_core:
            self._ensure_cores()
        self._parameters = {spec.name: self._parameter(spec) for spec in self.layout.specs}
        self._roles: frozenset[Role] = frozenset(spec.role for spec in self.layout.specs)
        self._check_trainable()
        self._activate()

    # -- values ---------------------------------------------------------------------------------

    def load(self, tensors: Tensors) -> None:
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

    def load_stack(self, tensors: Tensors, *, rank: int) -> None:
        """Put a frozen adapter of ``rank`` beside the trained one; rank 0 takes the last one away.

        ``tensors`` may be a full adapter: of it only the LoRA factors are used. Raises
        ArtefactError when they do not fit.
        """
        layout = adapter_layout(self.plan, self.base.manifest, rank=rank)
        layout.flatten(tensors)
        if rank:
            self._ensure_stack()
            for linear in target_linears(self.plan.adapter, self.base.manifest):
                self._fill_stack(
                    self._lora_layer(linear.path),
                    tensors[linear.path + LORA_A],
                    tensors[linear.path + LORA_B],
                )
        self._stack_rank = rank
        self._activate()

    def drop_stack(self) -> None:
        """Train without anything beside."""
        self._stack_rank = 0
        self._activate()

    # -- training -------------------------------------------------------------------------------

    def train_only(self, roles: Iterable[Role]) -> dict[str, nn.Parameter]:
        """Let only tensors of ``roles`` require gradients; returns those, by canonical name."""
        self._roles = frozenset(roles)
        self._activate()
        return self.trained()

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that require gradients, by canonical name in layout order."""
        return {
            spec.name: self._parameters[spec.name]
            for spec in self.layout.specs
            if spec.role in self._roles
        }

    def role(self, name: str) -> Role:
        """The role of a tensor."""
        return next(spec.role for spec in self.layout.specs if spec.name == name)

    def dropout(self, on: bool) -> None:
        """Eval mode throughout; with ``on`` the dropout in front of LoRA's factors works.

        The base's own dropouts stay off: a frozen base is not regularised, and its activations
        are those of the device that will serve it.
        """
        self._peft.eval()
        if on and self.plan.adapter.method == "lora" and self.plan.adapter.dropout > 0:
            for layer in self._lora_layers():
                layer.lora_dropout[self._name].train()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits (rows, labels) of token ids and mask, both (rows, tokens) int64."""
        self._activate()
        logits: torch.Tensor = self._peft(input_ids=ids, attention_mask=mask).logits
        return logits

    @property
    def device(self) -> torch.device:
        """Where the adapter and its base are."""
        return next(iter(self._parameters.values())).device

    # -- inside ---------------------------------------------------------------------------------

    def _config(self, rank: int, *, head: bool = True) -> LoraConfig | PromptTuningConfig:
        adapter, manifest = self.plan.adapter, self.base.manifest
        saved = [manifest.head.path] if head else None
        if adapter.method == "lora":
            return LoraConfig(
                task_type="SEQ_CLS",
                r=rank,
                lora_alpha=self.scaling * rank,  # peft divides by its own r (P-2.5)
                lora_dropout=adapter.dropout if head else 0.0,
                bias="none",
                target_modules=[linear.path for linear in target_linears(adapter, manifest)],
                modules_to_save=saved,
            )
        return PromptTuningConfig(
            task_type="SEQ_CLS",
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

    def _lora_layers(self) -> list[LoraLayer]:
        if self.plan.adapter.method != "lora":
            return []
        linears = target_linears(self.plan.adapter, self.base.manifest)
        return [self._lora_layer(linear.path) for linear in linears]

    def _parameter(self, spec: TensorSpec) -> nn.Parameter:
        if spec.role is Role.PROMPT:
            found = self._peft.prompt_encoder[self._name].embedding.weight
        elif spec.role is Role.LORA_A:
            found = self._lora_layer(spec.name.removesuffix(LORA_A)).lora_A[self._name].weight
        elif spec.role is Role.LORA_B:
            outer = self._lora_layer(spec.name.removesuffix(LORA_B)).lora_B[self._name]
            found = (outer[1] if isinstance(outer, nn.Sequential) else outer).weight
        elif spec.role is Role.LORA_R:
            found = self._lora_layer(spec.name.removesuffix(LORA_R)).lora_B[self._name][0].weight
        else:
            path, _, kind = spec.name.rpartition(".")
            wrapper = self.base.model.get_submodule(path)
            if not isinstance(wrapper, ModulesToSaveWrapper):
                raise TypeError(f"{path} is not trained beside the adapter")
            found = getattr(wrapper.modules_to_save[self._name], kind)
        if tuple(found.shape) != spec.shape or found.dtype != torch.float32:
            raise TypeError(
                f"{spec.name}: {tuple(found.shape)} {found.dtype} in the model, {spec.shape} here; "
                "was the base opened with the plan's number of labels?"
            )
        return found

    def _check_trainable(self) -> None:
        """What peft made trainable is what the layout names: no more and no less. (P-2.1)"""
        self._peft.__dict__.pop(_ACTIVE, None)
        self._peft.set_adapter(self._name)
        by_peft = {id(p): name for name, p in self._peft.named_parameters() if p.requires_grad}
        by_layout = {id(p): name for name, p in self._parameters.items()}
        if odd := set(by_peft) ^ set(by_layout):
            name = (by_peft | by_layout)[min(odd)]
            raise TypeError(f"{name} is trainable on one side only (peft, layout)")

    def _activate(self) -> None:
        """Make this adapter, its stack and its trained roles the active ones of the base."""
        wanted = (self._name, self._stack_rank, self._roles)
        if self._peft.__dict__.get(_ACTIVE) == wanted:
            return
        self._peft.set_adapter(self._name)
        if self._stack_rank:
            for layer in self._lora_layers():
                layer.set_adapter([self._name, self._stack_name])
        for parameter in self._peft.parameters():
            parameter.requires_grad_(False)
        for parameter in self.trained().values():
            parameter.requires_grad_(True)
        self._peft.__dict__[_ACTIVE] = wanted

    def _ensure_cores(self) -> None:
        """Put a core (r, r) in front of every B, as one module where peft expects B.

        peft's forward calls that module and does no more with it; whatever else of peft reads
        ``lora_B[name].weight`` (merging, saving) fails instead of leaving the core out.
        """
        for layer in self._lora_layers():
            outer = layer.lora_B[self._name]
            if isinstance(outer, nn.Linear):  # not yet: an equal model may have been made before
                core = nn.Linear(
                    self.rank, self.rank, bias=False, device=outer.weight.device
                ).requires_grad_(outer.weight.requires_grad)
                layer.lora_B[self._name] = nn.Sequential(core, outer)

    def _ensure_stack(self) -> None:
        if self._stack_name not in self._peft.peft_config:
            # PeftModel's own method: the subclass for classification would add a second head.
            config = self._config(1, head=False)
            PeftModel.add_adapter(self._peft, self._stack_name, config)
            refuse_merge(self._peft)

    def _fill_stack(self, layer: LoraLayer, a: Any, b: Any) -> None:
        name = self._stack_name
        for factors, values in ((layer.lora_A, a), (layer.lora_B, b)):
            tensor = torch.from_numpy(np.array(values, np.float32)).to(self.device)
            factors[name].weight = nn.Parameter(tensor, requires_grad=False)
        layer.r[name] = len(a)
        layer.lora_alpha[name] = self.scaling * len(a)
        layer.scaling[name] = self.scaling


def _settings(plan: Plan) -> dict[str, Any]:
    """What makes two adapters of equal rank different modules; ranks are in the name."""
    settings = plan.adapter.model_dump(mode="json", exclude={"rank", "alpha", "client_ranks"})
    return settings | {
        "scaling": lora_scaling(plan),
        "labels": len(plan.task.labels),
        "core": rule_named(plan.rule.name).has_core,
    }


def _wrapped(base: OpenBase, name: str, config: LoraConfig | PromptTuningConfig) -> PeftModel:
    """The one peft model around ``base.model``, with the adapter ``name`` in it."""
    peft: PeftModel | None = base.model.__dict__.get(_WRAPPER)
    if peft is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's remarks about configs without a hub id
            peft = get_peft_model(base.model, config, adapter_name=name)
        base.model.__dict__[_WRAPPER] = peft
    elif name not in peft.peft_config:
        if config.peft_type != peft.peft_type:
            raise ValueError("this base is wrapped for another PEFT method; open it again")
        peft.add_adapter(name, config)
    peft.eval()
    refuse_merge(peft)
    return peft
