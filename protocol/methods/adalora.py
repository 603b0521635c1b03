"""AdaLoRA: ``W + s * B diag(E) A``, whose terms are kept where they do most (Zhang et al., arXiv 2303.10512).

``PATH.lora_A`` (r, in) and ``.lora_B`` (out, r) begin with orthonormal rows and columns, ``.lora_E`` (r,)
with zeros, as singular vectors and values. Which of all linears' terms stay is the coordinator's to say,
after each round, from the adapter that the sum has made (P-4.7): clients send tensors of equal shapes,
nothing but the sum counts, and whoever has the adapter before repeats it. A term that was taken out has
E = 0 and may come back, its vectors being kept. A PEFT folder has ``B diag(E)`` in B's place, which is LoRA.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from protocol.forms import DOWN, UP
from protocol.halving import sum_by_halves
from protocol.initial import ZEROS, Law
from protocol.layout import Tensors, TensorSpec
from protocol.manifest import BaseManifest
from protocol.methods.base import Constants, Free, Remark
from protocol.methods.lora import LORA_A, LORA_B, A, B, Factors, RankSettings
from protocol.methods.targets import target_linears
from protocol.section import Rank

E = "lora_E"
LORA_E = f".{E}"


class AdaloraSettings(RankSettings):
    """The parameters that are trained: low-rank factors of ranks that are found."""

    method: Literal["adalora"] = Field(
        default="adalora", description="what is trained; `fedge methods` lists all"
    )
    target_rank: Rank = Field(default=4, description="terms a linear that are left, on average")


class Adalora(Factors[AdaloraSettings]):
    """Low-rank terms, of which the coordinator keeps those that do most."""

    name = "adalora"
    summary = (
        "low-rank terms with singular values: after each round the coordinator keeps those that do most, "
        "over all linears"
    )
    source = "AdaLoRA, arXiv 2303.10512; terms are ranked by their norms in the sum, which shows no gradients"
    settings = AdaloraSettings
    tried: ClassVar[Mapping[str, Any]] = {"rank": 4, "alpha": 8.0, "target_rank": 2}
    measured: ClassVar[Mapping[str, str]] = {"adapter.target_rank": "4"}
    turns = (frozenset({E}), frozenset({B}), frozenset({A}))  # E is zero: it moves first
    free: ClassVar[Free] = {A: ("rank", None), B: (None, "rank"), E: ("rank",)}
    reader = "lora"
    sequence = (E, B)
    folded = frozenset({E})

    def specs(self, settings: AdaloraSettings, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """See the module."""
        rows, columns = Law("orthonormal rows"), Law("orthonormal columns")
        for linear in target_linears(settings, manifest):
            width, out, r = linear.in_features, linear.out_features, settings.rank
            yield TensorSpec(name=linear.path + LORA_A, shape=(r, width), part=A, law=rows)
            yield TensorSpec(name=linear.path + LORA_B, shape=(out, r), part=B, law=columns)
            yield TensorSpec(name=linear.path + LORA_E, shape=(r,), part=E, law=ZEROS)

    def remarks(self, settings: AdaloraSettings, manifest: BaseManifest) -> Iterator[Remark]:
        """Also a rank to end at that is above the first."""
        yield from super().remarks(settings, manifest)
        if settings.target_rank > settings.rank:
            cause = f"{settings.target_rank} terms cannot be left of {settings.rank}"
            yield "error", "adapter.target_rank", cause, "at most adapter.rank"
        elif settings.target_rank == settings.rank:
            cause = "nothing is taken out, where the first rank is the last"
            yield "note", "adapter.target_rank", cause, "lower it, or train `lora`"

    def forms(self, tensors: Mapping[str, Any], constants: Constants) -> dict[str, Any]:
        """``A.T`` (in, r) and ``s * (B diag(E)).T`` (r, out)."""
        slots = {}
        for name, values in tensors.items():
            if name.endswith(LORA_E):
                path = name.removesuffix(LORA_E)
                slots[path + DOWN] = tensors[path + LORA_A].T
                slots[path + UP] = (tensors[path + LORA_B] * values).T * constants["scaling"]
        return slots

    def in_peft(
        self, settings: AdaloraSettings, manifest: BaseManifest, tensors: Tensors
    ) -> tuple[dict[str, Any], Tensors]:
        """peft divides its alpha by the rank in every step, and has E as a column."""
        config = {
            "peft_type": "ADALORA",
            "init_r": settings.rank,
            "target_r": settings.target_rank,
            "lora_alpha": settings.alpha,
            "total_step": 1,
            "target_modules": [linear.path for linear in target_linears(settings, manifest)],
        }
        columns = {n: x[:, None] if n.endswith(LORA_E) else x for n, x in tensors.items()}
        return config, {self.saved_prefix + name: value for name, value in columns.items()}

    def settled(
        self, tensors: Tensors, settings: AdaloraSettings, number: int, rounds: int
    ) -> Tensors:
        """Of all linears' terms the ``kept_terms`` of the largest ``E^2 |A|^2 |B|^2``, E of the others 0.

        Of equal ones the first, by name of the tensor and then by place. (P-4.7)
        """
        names = sorted(name for name in tensors if name.endswith(LORA_E))
        squares = np.concatenate([_squares(tensors, name) for name in names])
        count = kept_terms(len(names), settings, number, rounds)
        kept = np.zeros(len(squares), bool)
        kept[np.argsort(-squares, kind="stable")[:count]] = True
        values = {
            name: np.where(stays, tensors[name], np.float32(0))
            for name, stays in zip(names, kept.reshape(len(names), -1), strict=True)
        }
        return tensors | values

    def published(self, tensors: Tensors, specs: Iterable[TensorSpec]) -> Tensors:
        """Plain LoRA: A, and ``B diag(E)`` in B's place, each number a product of two in float32."""
        plain = {name: value for name, value in tensors.items() if not name.endswith(LORA_E)}
        for name in tensors.keys() - plain.keys():
            factor = name.removesuffix(LORA_E) + LORA_B
            plain[factor] = tensors[factor] * tensors[name]
        return plain


def kept_terms(linears: int, settings: AdaloraSettings, number: int, rounds: int) -> int:
    """Terms that are left after round ``number`` of ``rounds``, over all linears.

    From all of them to ``target_rank`` a linear at two thirds of the rounds, by the paper's cube.
    """
    last, spare = linears * settings.target_rank, linears * (settings.rank - settings.target_rank)
    end = -(-2 * rounds // 3)
    return last + spare * max(0, end - number) ** 3 // end**3


def _squares(tensors: Tensors, name: str) -> Any:
    """Squared norms of a linear's terms over s^2, (r,) float64."""
    path = name.removesuffix(LORA_E)
    values, a, b = (tensors[path + end].astype(np.float64) for end in (LORA_E, LORA_A, LORA_B))
    return (values * values) * (sum_by_halves((a * a).T) * sum_by_halves(b * b))
