"""Biases alone: a shift of what a linear gives (BitFit, Ben Zaken et al., arXiv 2106.10199).

``PATH.shift`` is (out,). In a PEFT folder it is the bias of LoRA's second factor, whose product is zero
there: a shift of the base's bias. BitFit itself keeps the new value, for which one would need the base.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from protocol.forms import SHIFT
from protocol.initial import ZEROS
from protocol.layout import Tensors, TensorSpec
from protocol.manifest import BaseManifest
from protocol.methods.base import Constants, Free, Method, Remark
from protocol.methods.lora import LORA_A, LORA_B, A, B, lora_config
from protocol.methods.targets import ChosenLinears, TargetSettings, slot_remarks, target_linears

PART = "shift"


class BiasSettings(TargetSettings):
    """The parameters that are trained: biases."""

    method: Literal["bias"] = Field(
        default="bias", description="what is trained; `fedge methods` lists all"
    )
    targets: ChosenLinears = Field(
        default="all-linear",
        description="last path component of the linears; keys have none that matters",
    )


class Bias(Method[BiasSettings]):
    """Biases of linears; those of keys do nothing, and have no slot."""

    name, peft_type = "bias", "LORA"
    summary = "biases of linears, those of keys apart, which change no answer: a very small upload"
    source = "BitFit, arXiv 2106.10199"
    elsewhere: ClassVar[Mapping[str, str]] = {"bitfit": "it is called `bias`"}
    settings = BiasSettings
    measured: ClassVar[Mapping[str, str]] = {"local.learning_rate": "1e-2"}
    turns = (frozenset({PART}),)
    free: ClassVar[Free] = {PART: (None,)}
    place = "shift"
    idle = frozenset({A, B})  # whose product is zero: the bias of B is trained alone

    def _shifted(
        self, settings: BiasSettings, manifest: BaseManifest
    ) -> list[tuple[str, int, int]]:
        """(path, in, out) of the targets that have a shift."""
        slots = manifest.graph.slot_names
        return [
            (linear.path, linear.in_features, linear.out_features)
            for linear in target_linears(settings, manifest)
            if linear.path + SHIFT in slots
        ]

    def specs(self, settings: BiasSettings, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """Zero: the base as it is."""
        for path, _, out in self._shifted(settings, manifest):
            yield TensorSpec(name=path + SHIFT, shape=(out,), part=PART, law=ZEROS)

    def remarks(self, settings: BiasSettings, manifest: BaseManifest) -> Iterator[Remark]:
        """Targets of which none has a bias that matters."""
        return slot_remarks(settings, manifest, SHIFT, "name other linears", all_of_them=False)

    def forms(self, tensors: Mapping[str, Any], constants: Constants) -> dict[str, Any]:
        """As they are; of a PEFT folder without the factors."""
        return {name: value for name, value in tensors.items() if name.endswith(SHIFT)}

    def peft_config(self, settings: BiasSettings, manifest: BaseManifest) -> dict[str, Any]:
        """Low-rank factors of rank 1, with a bias."""
        targets = [path for path, _, _ in self._shifted(settings, manifest)]
        return lora_config(targets=targets, rank=1, alpha=1.0) | {"lora_bias": True}

    def reads(self, config: Mapping[str, Any]) -> bool:
        """See :class:`Method`."""
        return super().reads(config) and config.get("lora_bias") is True

    def published_specs(
        self, specs: Iterable[TensorSpec], manifest: BaseManifest
    ) -> Iterator[TensorSpec]:
        """With the factors that peft expects."""
        widths = {linear.path: linear.in_features for linear in manifest.linears}
        for spec in specs:
            yield spec
            if spec.part == PART:
                path = spec.name.removesuffix(SHIFT)
                yield replace(spec, name=path + LORA_A, shape=(1, widths[path]), part=A)
                yield replace(spec, name=path + LORA_B, shape=(*spec.shape, 1), part=B)

    def published(self, tensors: Tensors, specs: Iterable[TensorSpec]) -> Tensors:
        """Those are zero."""
        zeros = {s.name: np.zeros(s.shape, np.float32) for s in specs if s.name not in tensors}
        return tensors | zeros

    def resumed(self, published: Tensors, specs: Iterable[TensorSpec]) -> Tensors:
        """Without them."""
        return {spec.name: published[spec.name] for spec in specs}

    def saved_name(self, name: str) -> str:
        """See :class:`Method`."""
        if name.endswith(SHIFT):
            return f"{self.saved_prefix}{name.removesuffix(SHIFT)}.lora_B.bias"
        return f"{self.saved_prefix}{name}.weight"

    def canonical_name(self, key: str) -> str:
        """See :class:`Method`."""
        name = key.removeprefix(self.saved_prefix)
        if name.endswith(".lora_B.bias"):
            return name.removesuffix(".lora_B.bias") + SHIFT
        return name.removesuffix(".weight")
