"""LoRA: ``W + s * B @ A`` beside linears (Hu et al., arXiv 2106.09685).

``PATH.lora_A`` is (r, in), ``PATH.lora_B`` (out, r), in PEFT's orientation. s is alpha / r, or
alpha / sqrt(r) where the plan says so (rsLoRA, arXiv 2312.03732).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field

from protocol.forms import DOWN, UP
from protocol.initial import ZEROS, Law
from protocol.layout import TensorSpec
from protocol.manifest import BaseManifest
from protocol.methods.base import Constants, Free, Method, Remark
from protocol.methods.targets import TargetSettings, rank_remarks, target_linears
from protocol.section import MOST_REAL, PositiveReal, Rank

A, B = "lora_A", "lora_B"
LORA_A, LORA_B = f".{A}", f".{B}"


class FactorSettings(TargetSettings):
    """Of a method with factors of one rank, whose product is added as it is."""

    rank: Rank = Field(default=8, description="columns of a factor, r")

    @property
    def strength(self) -> float:
        """PEFT's ``lora_alpha``: by what, over the rank, the change is scaled."""
        return float(self.rank)


class RankSettings(FactorSettings):
    """Of one that scales it."""

    alpha: PositiveReal = Field(default=16.0, description="the change is scaled by alpha / rank")

    @property
    def strength(self) -> float:
        """See :class:`FactorSettings`."""
        return self.alpha


class LoraSettings(RankSettings):
    """The parameters that are trained: low-rank factors beside linears."""

    method: Literal["lora"] = Field(
        default="lora", description="what is trained; `fedge methods` lists all"
    )
    rank_stabilised: bool = Field(
        default=False, description="rsLoRA: the change is scaled by alpha / sqrt(rank)"
    )


S = TypeVar("S", bound=FactorSettings)


class Factors(Method[S], Generic[S]):
    """What all methods share whose PEFT folder is one of LoRA's."""

    peft_type = "LORA"
    tried: ClassVar[Mapping[str, Any]] = {"rank": 4, "alpha": 8.0}
    sequence: ClassVar[tuple[str, ...]] = (B,)

    def remarks(self, settings: S, manifest: BaseManifest) -> Iterator[Remark]:
        """See :class:`Method`."""
        rank = settings.rank
        return rank_remarks(settings, manifest, rank=rank, low_rank=rank)

    def constants(self, settings: S) -> Constants:
        """``scaling``, s."""
        return {"scaling": settings.strength / settings.rank}

    def peft_config(self, settings: S, manifest: BaseManifest) -> dict[str, Any]:
        """See :class:`Method`."""
        return lora_config(
            targets=[linear.path for linear in target_linears(settings, manifest)],
            rank=settings.rank,
            alpha=settings.strength,
        )

    def saved_name(self, name: str) -> str:
        """A factor is a linear of PEFT's."""
        return f"{self.saved_prefix}{name}.weight"

    def canonical_name(self, key: str) -> str:
        """See :class:`Method`."""
        return key.removeprefix(self.saved_prefix).removesuffix(".weight")

    def trained_name(self, name: str) -> str:
        """See :class:`Method`."""
        path, _, part = name.rpartition(".")
        if part == A or len(self.sequence) == 1:
            return self.saved_name(name)
        return f"{self.saved_prefix}{path}.{B}.{self.sequence.index(part)}.weight"


class PlainFactors(Factors[S], Generic[S]):
    """LoRA's own tensors and forms."""

    turns: ClassVar[tuple[frozenset[str], ...]] = (frozenset({B}), frozenset({A}))
    free: ClassVar[Free] = {A: ("rank", None), B: (None, "rank")}

    def specs(self, settings: S, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """A is uniform in ±1/sqrt(in), PEFT's Kaiming start; B is zero."""
        for linear in target_linears(settings, manifest):
            width, out, r = linear.in_features, linear.out_features, settings.rank
            law = Law("uniform", 1.0 / math.sqrt(width))
            yield TensorSpec(name=linear.path + LORA_A, shape=(r, width), part=A, law=law)
            yield TensorSpec(name=linear.path + LORA_B, shape=(out, r), part=B, law=ZEROS)

    def forms(self, tensors: Mapping[str, Any], constants: Constants) -> dict[str, Any]:
        """``A.T`` (in, r) and ``s * B.T`` (r, out)."""
        slots = {}
        for name, value in tensors.items():
            if name.endswith(LORA_A):
                slots[name.removesuffix(LORA_A) + DOWN] = value.T
            else:
                slots[name.removesuffix(LORA_B) + UP] = value.T * constants["scaling"]
        return slots


class Lora(PlainFactors[LoraSettings]):
    """Low-rank factors beside linears."""

    name = "lora"
    summary = "low-rank factors beside linears"
    source = "LoRA, arXiv 2106.09685; rank_stabilised: rsLoRA, arXiv 2312.03732"
    elsewhere: ClassVar[Mapping[str, str]] = {
        "rslora": 'it is `method = "lora"` with `rank_stabilised = true`'
    }
    settings = LoraSettings

    def constants(self, settings: LoraSettings) -> Constants:
        """``scaling``, s."""
        if settings.rank_stabilised:
            return {"scaling": settings.alpha / math.sqrt(settings.rank)}
        return super().constants(settings)

    def constants_of(self, config: Mapping[str, Any]) -> Constants:
        """See :class:`Method`."""
        stable = config.get("use_rslora", False)
        if type(stable) is not bool:
            raise TypeError
        rank, alpha = positive(config, "r"), positive(config, "lora_alpha")
        return {"scaling": alpha / (math.sqrt(rank) if stable else rank)}

    def reads(self, config: Mapping[str, Any]) -> bool:
        """See :class:`Method`."""
        plain = all(config.get(key, False) is False for key in ("lora_bias", "use_dora"))
        return plain and super().reads(config)

    def peft_config(self, settings: LoraSettings, manifest: BaseManifest) -> dict[str, Any]:
        """See :class:`Method`."""
        stable = {"use_rslora": True} if settings.rank_stabilised else {}
        return super().peft_config(settings, manifest) | stable


def positive(config: Mapping[str, Any], key: str) -> float:
    """A number of PEFT's settings within reason. Raises KeyError, TypeError, ValueError."""
    value = config[key]
    if type(value) not in (int, float):
        raise TypeError
    if not 1e-12 <= value <= MOST_REAL:
        raise ValueError
    return float(value)


def lora_config(*, targets: list[str] | str, rank: int, alpha: float) -> dict[str, Any]:
    """``adapter_config.json`` of low-rank factors."""
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets,
    }
