"""Norms alone: scale and shift of every LayerNorm (Zhao et al., arXiv 2312.11420).

A norm gives ``scale * (norm(x) + shift)``; ``PATH.scale`` and ``PATH.shift`` are (features,). peft keeps the
new values of weight and bias, for which whoever publishes would need the base: a folder of ours has scale and
shift under peft's names, and the head under a name that only its ``open_adapter.py`` has, which multiplies
them in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from protocol.forms import SCALE, SHIFT
from protocol.initial import ONES, ZEROS
from protocol.layout import TensorSpec
from protocol.manifest import BaseManifest
from protocol.methods.base import Constants, Free, Method, Remark, Settings

PARTS = {
    SCALE: ("scale", ONES, "weight"),
    SHIFT: ("shift", ZEROS, "bias"),
}  # part, law, peft's name
LAYERS = ".ln_tuning_layers."


class NormSettings(Settings):
    """The parameters that are trained: scales and shifts of norms."""

    method: Literal["norm"] = Field(
        default="norm", description="what is trained; `fedge methods` lists all"
    )


class Norm(Method[NormSettings]):
    """Scales and shifts of all norms."""

    name, peft_type = "norm", "LN_TUNING"
    summary = "scale and shift of every LayerNorm: a very small upload"
    source = "LayerNorm tuning, arXiv 2312.11420"
    elsewhere: ClassVar[Mapping[str, str]] = {"ln_tuning": "it is called `norm`"}
    settings = NormSettings
    measured: ClassVar[Mapping[str, str]] = {"local.learning_rate": "1e-2"}
    turns = (frozenset({"scale"}), frozenset({"shift"}))
    free: ClassVar[Free] = {"scale": (None,), "shift": (None,)}
    own_opener, place = True, "scale"

    def specs(self, settings: NormSettings, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """The base as it is."""
        linears = {linear.path for linear in manifest.linears}
        for slot in manifest.graph.slots:
            path, dot, end = slot.name.rpartition(".")
            if dot + end in PARTS and path not in linears:
                part, law, _ = PARTS[dot + end]
                shape = tuple(int(size) for size in slot.shape)
                yield TensorSpec(name=slot.name, shape=shape, part=part, law=law)

    def remarks(self, settings: NormSettings, manifest: BaseManifest) -> Iterator[Remark]:
        """A base without a norm that has a slot."""
        if not any(True for _ in self.specs(settings, manifest)):
            yield (
                "error",
                "adapter.method",
                "the base's graph has no slot of a norm",
                "train another",
            )

    def forms(self, tensors: Mapping[str, Any], constants: Constants) -> dict[str, Any]:
        """As they are."""
        return dict(tensors)

    def peft_config(self, settings: NormSettings, manifest: BaseManifest) -> dict[str, Any]:
        """See :class:`Method`."""
        paths = {spec.name.rpartition(".")[0] for spec in self.specs(settings, manifest)}
        return {"peft_type": "LN_TUNING", "target_modules": sorted(paths)}

    def saved_name(self, name: str) -> str:
        """See :class:`Method`."""
        path, dot, end = name.rpartition(".")
        return f"{self.saved_prefix}{path}{LAYERS}{PARTS[dot + end][2]}"

    def canonical_name(self, key: str) -> str:
        """See :class:`Method`."""
        path, _, name = key.removeprefix(self.saved_prefix).rpartition(LAYERS)
        return next((path + end for end, (*_, saved) in PARTS.items() if saved == name), key)
