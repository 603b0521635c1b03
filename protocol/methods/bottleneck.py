"""Bottleneck adapters: ``y + s * g * relu(x D + b) U`` behind or beside parts of an encoder's layer.

Behind the attention's output and the feed-forward's, x = y (Houlsby et al., arXiv 1902.00751), behind the
latter alone (Pfeiffer et al., arXiv 2005.00247), or beside the feed-forward, from its input to its output (He
et al., arXiv 2110.04366). Or one alone stands behind the word embeddings, before types, positions and a soft
prompt. ``PATH.bottleneck_down`` is D, (hidden, w), ``.bottleneck_bias`` b, (w,),
``.bottleneck_up`` U, (w, hidden), and where it is gated ``.bottleneck_gate`` g, (1,), which begins at zero
(ReZero, arXiv 2003.04887); without gates U does. PATH is the linear's whose output y is, or, beside a
feed-forward, that of its first linear (``protocol.bottlenecks``).

The function is linear in g and in U; in D and b it is not. peft has no such type: a folder of ours is one of
plain numbers, D, b and ``g U``, which its ``open_adapter.py`` alone opens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from protocol.bottlenecks import WORDS, Place, bottleneck_places, feed_forwards
from protocol.errors import PlanError
from protocol.forms import BOTTLENECK, BOTTLENECK_BIAS, BOTTLENECK_DOWN, BOTTLENECK_UP
from protocol.initial import ZEROS, Law
from protocol.layout import Tensors, TensorSpec
from protocol.manifest import BaseManifest, HeadManifest, TextManifest, does, media_of
from protocol.methods.base import Constants, Free, Method, Remark, Settings, remark_of
from protocol.methods.lora import positive
from protocol.section import PositiveReal, Rank

DOWN, BIAS, UP = (end[1:] for end in (BOTTLENECK_DOWN, BOTTLENECK_BIAS, BOTTLENECK_UP))
GATE = "bottleneck_gate"
PLACES: dict[str, frozenset[Place]] = {
    "houlsby": frozenset({"attention", "output"}),
    "pfeiffer": frozenset({"output"}),
    "parallel": frozenset({"beside"}),
}
EMBEDDINGS = "embeddings"


class BottleneckSettings(Settings):
    """The parameters that are trained: small networks in every layer."""

    method: Literal["bottleneck"] = Field(
        default="bottleneck", description="what is trained; `fedge methods` lists all"
    )
    places: Literal["houlsby", "pfeiffer", "parallel", "embeddings"] = Field(
        default="pfeiffer",
        description="behind attention and feed-forward, behind the feed-forward, beside it, or one alone "
        "behind the word embeddings",
    )
    width: Rank = Field(default=16, description="features of the bottleneck, w")
    scaling: PositiveReal = Field(
        default=1.0, description="what a bottleneck adds is scaled by this; 4 is usual in parallel"
    )
    gated: bool = Field(
        default=False, description="ReZero: a number for each bottleneck that begins at zero"
    )


class Bottleneck(Method[BottleneckSettings]):
    """Small networks of two products, with a gate."""

    name, peft_type = "bottleneck", "BOTTLENECK"
    summary = (
        "small networks behind or beside parts of every layer of an encoder; not exact in rounds that train "
        "what goes into the activation"
    )
    source = "arXiv 1902.00751 (houlsby), 2005.00247 (pfeiffer), 2110.04366 (parallel), 2003.04887 (gates)"
    elsewhere: ClassVar[Mapping[str, str]] = {
        "pet": 'it is `method = "bottleneck"` with `places = "embeddings"`',
        **{
            name: f'it is `method = "bottleneck"` with `places = "{name}"`'
            for name in ("houlsby", "pfeiffer", "parallel")
        },
    }
    settings = BottleneckSettings
    tried: ClassVar[Mapping[str, Any]] = {
        "places": "houlsby",
        "width": 4,
        "scaling": 2.0,
        "gated": True,
    }
    measured: ClassVar[Mapping[str, str]] = {"adapter.width": "16"}
    # The one that is zero moves first: the gradients of all others are zero until then.
    turns: ClassVar[tuple[frozenset[str], ...]] = (
        frozenset({GATE}),
        frozenset({UP}),
        frozenset({DOWN, BIAS}),
    )
    nonlinear = frozenset({DOWN, BIAS})
    free: ClassVar[Free] = {
        DOWN: (None, "width"),
        BIAS: ("width",),
        UP: ("width", None),
        GATE: (None,),
    }
    own_opener, of_peft, place = True, False, "behind"

    def fitted(self, settings: BottleneckSettings) -> Method[BottleneckSettings]:
        """Without gates no round trains them."""
        return self if settings.gated else UNGATED

    folded = frozenset({GATE})

    def specs(self, settings: BottleneckSettings, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """D is uniform in ±1/sqrt(hidden), as LoRA's A; U is zero, or with a gate in ±1/sqrt(w)."""
        hidden, w, gated = _features(settings, manifest), settings.width, settings.gated
        down = Law("uniform", 1.0 / math.sqrt(hidden))
        up = Law("uniform", 1.0 / math.sqrt(w)) if gated else ZEROS
        for path in self._paths(settings, manifest):
            yield TensorSpec(name=f"{path}.{DOWN}", shape=(hidden, w), part=DOWN, law=down)
            yield TensorSpec(name=f"{path}.{BIAS}", shape=(w,), part=BIAS, law=ZEROS)
            yield TensorSpec(name=f"{path}.{UP}", shape=(w, hidden), part=UP, law=up)
            if gated:
                yield TensorSpec(name=f"{path}.{GATE}", shape=(1,), part=GATE, law=ZEROS)

    def _paths(self, settings: BottleneckSettings, manifest: BaseManifest) -> list[str]:
        """Where they stand. Raises PlanError for a base that has no such place."""
        if not isinstance(manifest, HeadManifest):
            raise PlanError(
                f"`adapter.method`: bases that {does(manifest)} have no bottlenecks",
                "train an adapter of linears, such as `lora`",
            )
        slots = manifest.graph.slot_names
        if settings.places == EMBEDDINGS:
            if not isinstance(manifest, TextManifest):
                raise PlanError(
                    f"`adapter.places`: a base of {media_of(manifest)} has no word embeddings",
                    "choose another place, such as `houlsby`",
                )
            ends = WORDS + BOTTLENECK_DOWN
            if words := [x.removesuffix(BOTTLENECK_DOWN) for x in slots if x.endswith(ends)]:
                return words
            raise PlanError(
                f"`adapter.places`: the base's graph has no {BOTTLENECK_DOWN[1:]} behind its word embeddings",
                "build the base again with this fedge: older ones have none there",
            )
        wanted = PLACES[settings.places]
        places = bottleneck_places(linear.path for linear in manifest.linears)
        paths = [path for path, place in places.items() if place in wanted]
        lacking = [path for path in paths if not {path + end for end in BOTTLENECK} <= slots]
        if not paths:
            raise PlanError(
                f"`adapter.method`: a bottleneck has no place in a base of family {manifest.family}",
                "train an adapter of linears, such as `lora`",
            )
        if lacking:
            raise PlanError(
                f"`adapter.method`: the base's graph has no {BOTTLENECK_DOWN[1:]} for {lacking[0]}",
                "build the base again with this fedge: older ones have no bottlenecks",
            )
        return paths

    def remarks(self, settings: BottleneckSettings, manifest: BaseManifest) -> Iterator[Remark]:
        """A base without the places or without their slots; a width that narrows nothing."""
        try:
            self._paths(settings, manifest)
        except PlanError as error:
            yield remark_of(error)
        if settings.width > (features := _features(settings, manifest)):
            cause = f"{settings.width} features are more than a layer's {features}"
            yield "error", "adapter.width", cause, "lower it"

    def constants(self, settings: BottleneckSettings) -> Constants:
        """``scaling``, s."""
        return {"scaling": settings.scaling}

    def constants_of(self, config: Mapping[str, Any]) -> Constants:
        """See :class:`Method`."""
        if config["non_linearity"] != "relu":
            raise ValueError
        return {"scaling": positive(config, "scaling")}

    def forms(self, tensors: Mapping[str, Any], constants: Constants) -> dict[str, Any]:
        """D, b and ``s * g U``; of a folder, whose U holds g, ``s * U``."""
        slots = {}
        for name, value in tensors.items():
            path, _, part = name.rpartition(".")
            if part == UP:
                gate = f"{path}.{GATE}"
                gated = value * tensors[gate] if gate in tensors else value
                slots[name] = gated * constants["scaling"]
            elif part != GATE:
                slots[name] = value
        return slots

    def peft_config(self, settings: BottleneckSettings, manifest: BaseManifest) -> dict[str, Any]:
        """A type that peft has not, and refuses."""
        paths, beside = (
            self._paths(settings, manifest),
            feed_forwards(linear.path for linear in manifest.linears),
        )
        parallel = settings.places == "parallel"
        return {
            "peft_type": self.peft_type,
            "places": settings.places,
            "bottleneck_size": settings.width,
            "non_linearity": "relu",
            "scaling": settings.scaling,
            "target_modules": paths,
            "output_modules": [beside[path] for path in paths] if parallel else paths,
        }

    def published(self, tensors: Tensors, specs: Iterable[TensorSpec]) -> Tensors:
        """``g U`` in U's place, each number a product of two in float32."""
        plain = {name: value for name, value in tensors.items() if not name.endswith(f".{GATE}")}
        for name in tensors.keys() - plain.keys():
            up = f"{name.removesuffix(GATE)}{UP}"
            plain[up] = tensors[up] * tensors[name]
        return plain


def _features(settings: BottleneckSettings, manifest: BaseManifest) -> int:
    """Of what goes into a bottleneck."""
    if settings.places == EMBEDDINGS and isinstance(manifest, TextManifest):
        return manifest.embedding_size
    return manifest.hidden_size


class _Ungated(Bottleneck):
    """The same without gates."""

    turns = Bottleneck.turns[1:]
    free: ClassVar[Free] = {part: d for part, d in Bottleneck.free.items() if part != GATE}


UNGATED = _Ungated()
