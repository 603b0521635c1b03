"""IA3: a learned factor for each output of a linear, or for each input of one that narrows.

Liu et al., arXiv 2205.05638. ``PATH.ia3_l`` is (out, 1), or (1, in) where the linear has fewer outputs than
inputs: the second of a feed-forward pair, whose input is the activation that the paper scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from protocol.forms import SCALE
from protocol.initial import ONES
from protocol.layout import TensorSpec
from protocol.manifest import BaseManifest
from protocol.methods.base import Constants, Free, Method, Remark
from protocol.methods.targets import ChosenLinears, TargetSettings, scale_remarks, target_linears

PART = "ia3_l"
END = f".{PART}"


class Ia3Settings(TargetSettings):
    """The parameters that are trained: a factor for every feature of a linear."""

    method: Literal["ia3"] = Field(
        default="ia3", description="what is trained; `fedge methods` lists all"
    )
    targets: ChosenLinears = Field(
        default="all-linear", description="last path component of the scaled linears"
    )


class Ia3(Method[Ia3Settings]):
    """Factors of features; needs a base built with ``--scales``."""

    name, peft_type = "ia3", "IA3"
    summary = (
        "a factor for every feature of a linear: fewer numbers than LoRA of rank 1; asks for a base that "
        "was built with --scales"
    )
    source = "IA3, arXiv 2205.05638"
    settings = Ia3Settings
    measured: ClassVar[Mapping[str, str]] = {"local.learning_rate": "1e-2"}
    turns = (frozenset({PART}),)
    scales, place = True, "scale"
    free: ClassVar[Free] = {PART: (None, None)}

    def specs(self, settings: Ia3Settings, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """Ones: the base as it is."""
        for linear in target_linears(settings, manifest):
            shape = (1, linear.in_features) if linear.narrows else (linear.out_features, 1)
            yield TensorSpec(name=linear.path + END, shape=shape, part=PART, law=ONES)

    def remarks(self, settings: Ia3Settings, manifest: BaseManifest) -> Iterator[Remark]:
        """A base whose graph has no scales of linears."""
        yield from scale_remarks(self.name, settings, manifest)

    def forms(self, tensors: Mapping[str, Any], constants: Constants) -> dict[str, Any]:
        """(features,) each."""
        return {name.removesuffix(END) + SCALE: x.reshape(-1) for name, x in tensors.items()}

    def peft_config(self, settings: Ia3Settings, manifest: BaseManifest) -> dict[str, Any]:
        """See :class:`Method`."""
        linears = target_linears(settings, manifest)
        return {
            "peft_type": "IA3",
            "target_modules": [linear.path for linear in linears],
            "feedforward_modules": [linear.path for linear in linears if linear.narrows],
        }
