"""The head alone: what a linear probe trains, and the yardstick of every other method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from protocol.layout import TensorSpec
from protocol.manifest import BaseManifest, HeadManifest
from protocol.methods.base import Constants, Free, Method, Remark, Settings
from protocol.methods.lora import lora_config


class HeadSettings(Settings):
    """The parameters that are trained: the head."""

    method: Literal["head"] = Field(
        default="head", description="what is trained; `fedge methods` lists all"
    )


class Head(Method[HeadSettings]):
    """Nothing beside the head."""

    name, peft_type, reader = "head", "LORA", "lora"
    summary = "the head alone, a linear probe: the smallest upload and the least memory"
    source = "linear probing, arXiv 1610.01644"
    settings = HeadSettings
    turns = (frozenset[str](),)
    free: ClassVar[Free] = {}

    def specs(self, settings: HeadSettings, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """None."""
        return iter(())

    def remarks(self, settings: HeadSettings, manifest: BaseManifest) -> Iterator[Remark]:
        """A base whose own output layer answers."""
        if not isinstance(manifest, HeadManifest):
            cause, remedy = "this base has no head to train", "train an adapter, such as `lora`"
            yield "error", "adapter.method", cause, remedy

    def forms(self, tensors: Mapping[str, Any], constants: Constants) -> dict[str, Any]:
        """None."""
        return {}

    def peft_config(self, settings: HeadSettings, manifest: BaseManifest) -> dict[str, Any]:
        """Low-rank factors of no linear: peft has no type for a head, and this name for none."""
        return lora_config(targets="dummy-target-modules", rank=1, alpha=1.0)
