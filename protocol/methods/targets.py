"""Which linears a method adapts: ``[adapter] targets``. (P-2.1)"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Final, Literal

from pydantic import Field, field_validator

from protocol.errors import PlanError
from protocol.forms import SCALE
from protocol.manifest import BaseManifest, HeadManifest, Linear, does
from protocol.methods.base import Remark, Settings, remark_of
from protocol.section import Layers, Targets

QUERY_VALUE: Final = "query-value"
# What families call the linears of an attention's queries and values. In each all that are there are meant;
# the last three give keys as well. (P-2.1)
QUERIES_AND_VALUES = frozenset(
    {
        *("query", "value", "q_lin", "v_lin", "q", "v", "q_proj", "v_proj"),
        *("to_q", "to_v"),
        *("c_attn", "query_key_value", "qkv_proj"),
    }
)
ChosenLinears = Targets | Literal["query-value", "all-linear"]


class TargetSettings(Settings):
    """Of a method that adapts linears."""

    targets: ChosenLinears = Field(
        default=QUERY_VALUE,
        description="last path component of the adapted linears, or the attention's queries and values, "
        "whatever the base calls them",
    )

    layers: Layers = Field(
        default=[],
        description="numbers of the layers whose linears these are, from 0 where a text comes in; none: all",
    )

    @property
    def unsaid(self) -> set[str]:
        """See :class:`protocol.section.Section`."""
        return set() if self.layers else {"layers"}

    @field_validator("layers")
    @classmethod
    def _in_order(cls, value: list[int]) -> list[int]:
        if value != sorted(set(value)):
            raise ValueError("name each layer once, in order")
        return value

    @field_validator("targets", mode="before")
    @classmethod
    def _names_or_all(cls, value: object) -> object:
        if value not in (QUERY_VALUE, "all-linear") and (not isinstance(value, list) or not value):
            raise ValueError(
                'write "query-value", "all-linear", or a list of names such as ["q_proj", "v_proj"]'
            )
        return value


def target_linears(settings: TargetSettings, manifest: BaseManifest) -> tuple[Linear, ...]:
    """The adapted linears, by path. Raises PlanError for a target that is not there.

    A target matches whole trailing path components: ``query`` or ``attention.output.dense``.
    """
    every = sorted(_of_layers(settings, manifest), key=lambda linear: linear.path)
    if settings.targets == "all-linear":
        return tuple(every)
    if settings.targets == QUERY_VALUE:
        if named := tuple(linear for linear in every if _end(linear) in QUERIES_AND_VALUES):
            return named
        raise PlanError(
            "`adapter.targets`: no linear of the base is named as queries or values are",
            _ends_of(manifest),
        )
    chosen: dict[str, Linear] = {}
    for target in settings.targets:
        matches = [linear for linear in every if f".{linear.path}".endswith(f".{target}")]
        if not matches:
            raise PlanError(
                f"`adapter.targets`: the base has no linear `{target}`", _ends_of(manifest)
            )
        chosen.update({linear.path: linear for linear in matches})
    return tuple(chosen[path] for path in sorted(chosen))


def query_value_names(manifest: BaseManifest) -> list[str]:
    """What the base calls the linears of ``"query-value"``, sorted; none where there are none."""
    return sorted({_end(linear) for linear in manifest.linears} & QUERIES_AND_VALUES)


def _end(linear: Linear) -> str:
    return linear.path.rpartition(".")[2]


def _ends_of(manifest: BaseManifest) -> str:
    ends = sorted({_end(linear) for linear in manifest.linears})
    return f'linears end in: {", ".join(ends)}; or use targets = "all-linear"'


def layer_of(linear: Linear) -> int | None:
    """The first number in its path; of a base of two stacks each has its own from 0."""
    return next((int(part) for part in linear.path.split(".") if part.isdecimal()), None)


def _of_layers(settings: TargetSettings, manifest: BaseManifest) -> list[Linear]:
    if not settings.layers:
        return list(manifest.linears)
    present = {layer_of(linear) for linear in manifest.linears} - {None}
    if absent := set(settings.layers) - present:
        raise PlanError(
            f"`adapter.layers`: the base has no layer {min(absent)}",
            f"it has {len(present)}, counted from 0; leave the key out for all",
        )
    return [linear for linear in manifest.linears if layer_of(linear) in settings.layers]


def rank_remarks(
    settings: TargetSettings, manifest: BaseManifest, *, rank: int, low_rank: int, how: str = ""
) -> Iterator[Remark]:
    """A target that is not there, or a product of ``low_rank`` columns that is above a layer's width.

    ``how`` says by what ``rank`` comes to as many, where they are not the same.
    """
    linears = yield from _adapted(settings, manifest)
    smallest = min((min(x.in_features, x.out_features) for x in linears), default=low_rank)
    if low_rank > smallest:
        product = f" {how}, {low_rank}," if low_rank != rank else ""
        cause = f"rank {rank}{product} exceeds a layer's {smallest} features"
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


def scale_remarks(
    method: str, settings: TargetSettings, manifest: BaseManifest
) -> Generator[Remark, None, bool]:
    """Of a method that fills scales of linears, on a base without them; whether the base may have some."""
    if not isinstance(manifest, HeadManifest):
        cause = f"bases that {does(manifest)} have no scales, which `{method}` fills"
        yield "error", "adapter.method", cause, "train an adapter of linears, such as `lora`"
        return False
    remedy = "build the base with `--scales`, in an experiment `base.scales = true`"
    yield from slot_remarks(settings, manifest, SCALE, remedy)
    return True


def _adapted(
    settings: TargetSettings, manifest: BaseManifest
) -> Generator[Remark, None, tuple[Linear, ...]]:
    """The adapted linears; none, with a remark, where a target is not there."""
    try:
        linears = target_linears(settings, manifest)
    except PlanError as error:
        yield remark_of(error)
        return ()
    if settings.targets == QUERY_VALUE:
        names = ", ".join(query_value_names(manifest))
        yield "note", "adapter.targets", f"{QUERY_VALUE} is here: {names}", ""
    return linears
