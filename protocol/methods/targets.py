"""Which linears a method adapts: ``[adapter] targets``. (P-2.1)"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Literal

from pydantic import Field, field_validator

from protocol.errors import PlanError
from protocol.manifest import BaseManifest, Linear
from protocol.methods.base import Remark, Settings
from protocol.section import Targets


class TargetSettings(Settings):
    """Of a method that adapts linears."""

    targets: Targets | Literal["all-linear"] = Field(
        default=["query", "value"], description="last path component of the adapted linears"
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _names_or_all(cls, value: object) -> object:
        if value != "all-linear" and (not isinstance(value, list) or not value):
            raise ValueError('write "all-linear", or a list of names such as ["query", "value"]')
        return value


def target_linears(settings: TargetSettings, manifest: BaseManifest) -> tuple[Linear, ...]:
    """The adapted linears, by path. Raises PlanError for a target that is not there.

    A target matches whole trailing path components: ``query`` or ``attention.output.dense``.
    """
    if settings.targets == "all-linear":
        return tuple(sorted(manifest.linears, key=lambda linear: linear.path))
    chosen: dict[str, Linear] = {}
    for target in settings.targets:
        matches = [x for x in manifest.linears if f".{x.path}".endswith(f".{target}")]
        if not matches:
            ends = sorted({linear.path.rsplit(".", 1)[-1] for linear in manifest.linears})
            raise PlanError(
                f"`adapter.targets`: the base has no linear `{target}`",
                f'linears end in: {", ".join(ends)}; or use targets = "all-linear"',
            )
        chosen.update({linear.path: linear for linear in matches})
    return tuple(chosen[path] for path in sorted(chosen))


def rank_remarks(
    settings: TargetSettings, manifest: BaseManifest, *, rank: int, low_rank: int
) -> Iterator[Remark]:
    """A target that is not there, or a product of ``low_rank`` columns that is above a layer's width."""
    linears = yield from _adapted(settings, manifest)
    smallest = min((min(x.in_features, x.out_features) for x in linears), default=low_rank)
    if low_rank > smallest:
        power = f" squared, {low_rank}," if low_rank != rank else ""
        cause = f"rank {rank}{power} exceeds a layer's {smallest} features"
        yield "error", "adapter.rank", cause, "lower it"


def slot_remarks(
    settings: TargetSettings,
    manifest: BaseManifest,
    end: str,
    remedy: str,
    *,
    all_of_them: bool = True,
) -> Iterator[Remark]:
    """A target that is not there, or lacks the slot that ends in ``end``; one of them may be enough."""
    paths = [linear.path for linear in (yield from _adapted(settings, manifest))]
    lacking = [path for path in paths if path + end not in manifest.graph.slot_names]
    if lacking and (all_of_them or len(lacking) == len(paths)):
        cause = f"the base's graph has no {end.removeprefix('.')} for {lacking[0]}"
        yield "error", "adapter.method", cause, remedy


def _adapted(
    settings: TargetSettings, manifest: BaseManifest
) -> Generator[Remark, None, tuple[Linear, ...]]:
    """The adapted linears; none, with a remark, where a target is not there."""
    try:
        return target_linears(settings, manifest)
    except PlanError as error:
        cause = error.cause.removeprefix("`adapter.targets`: ")
        yield "error", "adapter.targets", cause, error.remedy
        return ()
