"""What LoHa and LoKr share: a product of two low-rank matrices, of rank r^2 to the answering graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from protocol.manifest import BaseManifest
from protocol.methods.base import Constants, Free, Method, Remark
from protocol.methods.lora import RankSettings, positive
from protocol.methods.targets import rank_remarks, target_linears

S = TypeVar("S", bound=RankSettings)


class Products(Method[S], Generic[S]):
    """Four factors for each linear."""

    def remarks(self, settings: S, manifest: BaseManifest) -> Iterator[Remark]:
        """See :class:`Method`."""
        rank = settings.rank
        return rank_remarks(settings, manifest, rank=rank, low_rank=rank * rank, how="squared")

    def constants(self, settings: S) -> Constants:
        """``scaling``, s."""
        return {"scaling": settings.alpha / settings.rank}

    def constants_of(self, config: Mapping[str, Any]) -> Constants:
        """See :class:`Method`."""
        return {"scaling": positive(config, "alpha") / positive(config, "r")}

    def peft_config(self, settings: S, manifest: BaseManifest) -> dict[str, Any]:
        """See :class:`Method`."""
        return {
            "peft_type": self.peft_type,
            "r": settings.rank,
            "alpha": settings.alpha,
            "target_modules": [linear.path for linear in target_linears(settings, manifest)],
        }


def free_factors(left: tuple[str, str], right: tuple[str, str]) -> Free:
    """Of the parts (out, r) and (r, in)."""
    return dict.fromkeys(left, (None, "rank")) | dict.fromkeys(right, ("rank", None))
