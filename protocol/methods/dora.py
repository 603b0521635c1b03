"""DoRA: low-rank factors turn a weight's rows, a number of each row is its length (arXiv 2402.09353).

``m * (W + s B A) / |W + s B A|``, row by row: beside LoRA's ``PATH.lora_A`` and ``.lora_B`` there is
``PATH.lora_magnitude_vector`` (out,), what m is above the length of the base's row. So round 0 is zeros,
which everybody has, where m itself would need the base. As in the paper and in peft the length in the
denominator has no gradient, and the bias is not scaled.

In forms it is a scale ``g = m / |W + s B A|`` of what the linear gives, ``s B`` times g as the second factor,
and a shift that gives the bias back. Those hang on W: whoever computes them has the base (``FrozenLinears``).
A linear with fewer outputs than inputs has no scale of outputs (P-1.11), and is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from protocol.errors import ArtefactError, PlanError
from protocol.forms import SCALE, SHIFT, UP
from protocol.frozen_linears import FrozenLinears
from protocol.initial import ZEROS
from protocol.layout import TensorSpec
from protocol.manifest import BaseManifest, Linear
from protocol.methods.base import Constants, Free, Remark
from protocol.methods.lora import LORA_A, LORA_B, A, B, PlainFactors, RankSettings, positive
from protocol.methods.targets import scale_remarks, target_linears

MAGNITUDE = "lora_magnitude_vector"
END, GAIN, BIAS = f".{MAGNITUDE}", ".gain", ".bias"


class DoraSettings(RankSettings):
    """The parameters that are trained: low-rank factors, and the lengths of weights' rows."""

    method: Literal["dora"] = Field(
        default="dora", description="what is trained; `fedge methods` lists all"
    )


class Dora(PlainFactors[DoraSettings]):
    """Directions by low-rank factors, lengths by a number for every output."""

    name = "dora"
    summary = (
        "low-rank factors for the directions of a weight's rows, a number for the length of each; asks for "
        "a base that was built with --scales, and a base for whoever audits what devices run"
    )
    source = "DoRA, arXiv 2402.09353"
    settings = DoraSettings
    turns = (frozenset({B, MAGNITUDE}), frozenset({A}))
    nonlinear = frozenset({A, B})
    scales = True
    own_opener = True
    reads_base = True
    switches = frozenset({"use_dora"})
    free: ClassVar[Free] = {A: ("rank", None), B: (None, "rank"), MAGNITUDE: (None,)}

    def specs(self, settings: DoraSettings, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """LoRA's, of linears with a scale of outputs; offsets are zero."""
        sizes = {linear.path: linear.out_features for linear in _scaled(settings, manifest)}
        for spec in super().specs(settings, manifest):
            path = spec.name.removesuffix(f".{spec.part}")
            if path not in sizes:
                continue
            yield spec
            if spec.part == B:
                shape = (sizes[path],)
                yield TensorSpec(name=path + END, shape=shape, part=MAGNITUDE, law=ZEROS)

    def remarks(self, settings: DoraSettings, manifest: BaseManifest) -> Iterator[Remark]:
        """Also a base without scales of linears, and targets that have none of outputs."""
        if not (yield from scale_remarks(self.name, settings, manifest)):
            return
        yield from (
            said for said in super().remarks(settings, manifest) if said[1] == "adapter.rank"
        )
        with suppress(PlanError):  # said above
            narrow = [each.path for each in target_linears(settings, manifest) if each.narrows]
            if not _scaled(settings, manifest):
                cause = f"{narrow[0]} has no scale of its outputs, which are fewer than its inputs"
                yield "error", "adapter.targets", cause, "name other linears"
            elif narrow:
                cause = f"{narrow[0]} stays as it is: its outputs are fewer than its inputs"
                yield "note", "adapter.targets", cause, ""

    def on_base(
        self, tensors: Mapping[str, Any], constants: Constants, linears: FrozenLinears
    ) -> Mapping[str, Any]:
        """With ``PATH.gain`` (out,), g, and ``PATH.bias`` (out,) where the graph has a shift of it."""
        added = {}
        for name, offset in tensors.items():
            if not name.endswith(END):
                continue
            path = name.removesuffix(END)
            up = tensors[path + LORA_B] * np.float32(constants["scaling"])
            grown = linears.growth(path, tensors[path + LORA_A], up)
            added[path + GAIN] = (offset / linears.lengths(path) + 1.0) / grown
            if (bias := linears.bias(path)) is not None:
                added[path + BIAS] = bias
        return {**tensors, **added}

    def forms(self, tensors: Mapping[str, Any], constants: Constants) -> dict[str, Any]:
        """``A.T``, ``s * B.T`` times g column by column, g, and ``bias / g - bias``."""
        plain = {name: x for name, x in tensors.items() if name.endswith((LORA_A, LORA_B))}
        slots = super().forms(plain, constants)
        for name, gain in tensors.items():
            if name.endswith(GAIN):
                path = name.removesuffix(GAIN)
                slots[path + UP] = slots[path + UP] * gain
                slots[path + SCALE] = gain
                if (bias := tensors.get(path + BIAS)) is not None:
                    slots[path + SHIFT] = bias / gain - bias
        return slots

    def reading_of(self, config: Mapping[str, Any], *, source: str) -> Dora:
        """See :class:`Method`. Raises ArtefactError also for a scaling that ours has not."""
        if config.get("use_rslora", False) is not False:
            raise ArtefactError(
                f"{source}: `use_rslora` beside `use_dora` scales otherwise than fedge does",
                "train it with one of them",
            )
        return self

    def constants_of(self, config: Mapping[str, Any]) -> Constants:
        """See :class:`Method`."""
        return {"scaling": positive(config, "lora_alpha") / positive(config, "r")}

    def peft_config(self, settings: DoraSettings, manifest: BaseManifest) -> dict[str, Any]:
        """LoRA's, of the linears that have a scale of outputs."""
        targets = [linear.path for linear in _scaled(settings, manifest)]
        config = super().peft_config(settings, manifest)
        return config | {"target_modules": targets, "use_dora": True}

    def saved_name(self, name: str) -> str:
        """See :class:`Method`."""
        return self.saved_prefix + name if name.endswith(END) else super().saved_name(name)

    def trained_name(self, name: str) -> str:
        """See :class:`Method`."""
        return super().saved_name(name)


def _scaled(settings: DoraSettings, manifest: BaseManifest) -> list[Linear]:
    return [linear for linear in target_linears(settings, manifest) if not linear.narrows]
