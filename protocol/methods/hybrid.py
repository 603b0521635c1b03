"""Several methods in one adapter, each with settings of its own: LoRA beside a prompt, biases beside norms.

He et al. (arXiv 2110.04366) and Mao et al. (UniPELT, arXiv 2110.07577) found such compositions ahead of their
parts. A hybrid has no tensors of its own: those of its members, whose names and parts begin with the member's
number, ``0.``, ``1.``. What they put into the answering graph's slots stands side by side, so no two of them
may fill one slot. A round's turn is one of every member's; a mean of its updates is exact where it is of
each, as their slots are other ones, and no linear is scaled by one and shifted by another. (docs/adr/0079)

peft has no such type: a folder is read by its ``open_adapter.py``, member by member.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import Field

from protocol.bottlenecks import WORDS
from protocol.denoiser_manifest import DenoiserManifest
from protocol.errors import ArtefactError, PlanError
from protocol.forms import PREFIX, SCALE, SHIFT, SOFT_PROMPT
from protocol.layout import HEAD_PARTS, Tensors, TensorSpec
from protocol.manifest import BaseManifest
from protocol.methods.base import Constants, Free, Method, Remark, Settings
from protocol.methods.lora import LoraSettings
from protocol.methods.prompt import PromptSettings
from protocol.methods.single import MEMBERS, Member, reader_among

TYPE = "HYBRID"
MOST_MEMBERS = 4
Members = tuple[Method[Any], ...]
V = TypeVar("V")


class HybridSettings(Settings):
    """The parameters that are trained: those of several methods."""

    method: Literal["hybrid"] = Field(
        default="hybrid", description="what is trained; `fedge methods` lists all"
    )
    members: list[Member] = Field(
        default=[LoraSettings(), PromptSettings()],
        min_length=2,
        max_length=MOST_MEMBERS,
        description="tables [[adapter.members]], each with the keys of another method",
    )

    @property
    def unsaid(self) -> dict[str, Any]:
        """See :class:`protocol.section.Section`."""
        return {"members": {n: member.unsaid for n, member in enumerate(self.members)}}


class Hybrid(Method[HybridSettings]):
    """Methods side by side, as the settings name them; of no settings those of the defaults."""

    name, peft_type = "hybrid", TYPE
    summary = (
        "several methods side by side, such as LoRA and a soft prompt, each with keys of its own"
    )
    source = "MAM adapters, arXiv 2110.04366; UniPELT, arXiv 2110.07577"
    settings = HybridSettings
    tried: ClassVar[Mapping[str, Any]] = {
        "members": [
            {"method": "lora", "rank": 4, "alpha": 8.0},
            {"method": "prompt", "tokens": 5},
        ]
    }
    measured: ClassVar[Mapping[str, str]] = {
        "adapter.members": '[{method = "lora", rank = 8}, {method = "bias"}, {method = "norm"}]'
    }
    own_opener, of_peft = True, False
    turns: tuple[frozenset[str], ...]  # type: ignore[misc]
    nonlinear: frozenset[str]  # type: ignore[misc]
    folded: frozenset[str]  # type: ignore[misc]
    free: Free  # type: ignore[misc]
    scales: bool  # type: ignore[misc]
    writes: bool  # type: ignore[misc]

    def __init__(self, members: Members) -> None:
        self.members = members
        self.turns, self.nonlinear = _turns(members), _parts(m.nonlinear for m in members)
        self.folded = _parts(member.folded for member in members)
        self.free = {
            f"{n}.{part}": tuple(free and f"{n}.{free}" for free in dimensions)
            for n, member in enumerate(members)
            for part, dimensions in member.free.items()
        }
        self.scales = any(member.scales for member in members)
        self.writes = any(member.writes for member in members)

    def __eq__(self, other: object) -> bool:
        """Of the same methods."""
        return isinstance(other, Hybrid) and self.members == other.members

    def __hash__(self) -> int:
        return hash(self.members)

    def fitted(self, settings: HybridSettings) -> Hybrid:
        """Of the members that are named."""
        return Hybrid.of(settings)

    @classmethod
    def of(cls, settings: HybridSettings) -> Hybrid:
        """The composition of these members."""
        return cls(tuple(MEMBERS[member.method].fitted(member) for member in settings.members))

    def reading(self, known: Mapping[str, Method[Any]]) -> Hybrid:
        """See :class:`Method`."""
        return Hybrid(tuple(member.reading(known) for member in self.members))

    def reading_of(self, config: Mapping[str, Any], *, source: str) -> Hybrid:
        """See :class:`Method`."""
        members = config.get("members")
        if (
            not isinstance(members, list)
            or not 2 <= len(members) <= MOST_MEMBERS
            or not all(isinstance(member, dict) for member in members)
        ):
            raise ArtefactError(f"{source}: not a hybrid's members", "fetch the adapter again")
        return Hybrid(tuple(reader_among(MEMBERS, own, source=source) for own in members))

    def specs(self, settings: HybridSettings, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """The members'."""
        for n, (member, own) in enumerate(self._with(settings)):
            try:
                for spec in member.specs(own, manifest):
                    yield _numbered(n, spec)
            except PlanError as error:
                raise PlanError(_place(n, error.cause), error.remedy) from None

    def remarks(self, settings: HybridSettings, manifest: BaseManifest) -> Iterator[Remark]:
        """The members', and slots that two of them would fill."""
        if isinstance(manifest, DenoiserManifest):
            cause = "a base that draws takes no hybrid: diffusers and peft alone open its adapters"
            yield "error", "adapter.members", cause, "train one adapter of linears, such as `lora`"
            return
        fits = True
        for n, (member, own) in enumerate(self._with(settings)):
            for severity, field, cause, remedy in member.remarks(own, manifest):
                fits = fits and severity != "error"
                yield severity, _place(n, field), cause, remedy
        if fits:
            yield from self._clashes(settings, manifest)

    def _clashes(self, settings: HybridSettings, manifest: BaseManifest) -> Iterator[Remark]:
        """By the slots' names, for which a number per tensor is enough.

        Prompt and prefix are one place, and a prompt's pads are known by the words' vectors as they are.
        """
        filled: dict[str, int] = {}
        for n, (member, own) in enumerate(self._with(settings)):
            specs = member.specs(own, manifest)
            least = {spec.name: np.ones((1,) * len(spec.shape), np.float32) for spec in specs}
            for slot in sorted(member.forms(least, member.constants(own))):
                of_words = slot == PREFIX or WORDS in slot
                place = SOFT_PROMPT if of_words else slot.replace(SHIFT, SCALE)
                if filled.setdefault(place, n) != n:
                    other = self.members[filled[place]].name
                    cause = f"`{other}` and `{member.name}` both act at {slot}"
                    yield "error", "adapter.members", cause, "leave one out, or name other linears"
                    return

    def _with(self, settings: HybridSettings) -> Iterator[tuple[Method[Any], Settings]]:
        """Members and their settings."""
        return zip(self.members, settings.members, strict=True)

    def tokens(self, settings: HybridSettings) -> int:
        """Those of all members."""
        return sum(member.tokens(own) for member, own in self._with(settings))

    def encoder(
        self, settings: HybridSettings, spec: TensorSpec, manifest: BaseManifest
    ) -> tuple[TensorSpec, ...]:
        """See :class:`Method`."""
        n, plain = _plain(spec)
        networks = self.members[n].encoder(settings.members[n], plain, manifest)
        return tuple(_numbered(n, each) for each in networks)

    def forms(self, tensors: Mapping[str, Any], constants: Constants) -> dict[str, Any]:
        """The members', side by side."""
        slots: dict[str, Any] = {}
        for n, member in enumerate(self.members):
            slots |= member.forms(of_member(n, tensors), of_member(n, constants))
        return slots

    def constants(self, settings: HybridSettings) -> Constants:
        """Every member's, behind its number."""
        return self._numbered_constants(m.constants(own) for m, own in self._with(settings))

    def constants_of(self, config: Mapping[str, Any]) -> Constants:
        """See :class:`Method`."""
        pairs = zip(self.members, config["members"], strict=True)
        return self._numbered_constants(member.constants_of(own) for member, own in pairs)

    @staticmethod
    def _numbered_constants(members: Iterable[Constants]) -> Constants:
        return {f"{n}.{key}": value for n, own in enumerate(members) for key, value in own.items()}

    def peft_config(self, settings: HybridSettings, manifest: BaseManifest) -> dict[str, Any]:
        """A type that peft has not, and refuses, with the members' keys in their order."""
        members = [member.peft_config(own, manifest) for member, own in self._with(settings)]
        return {"peft_type": TYPE, "members": members}

    def published_specs(
        self, specs: Iterable[TensorSpec], manifest: BaseManifest
    ) -> Iterator[TensorSpec]:
        """See :class:`Method`."""
        every = list(specs)
        yield from (spec for spec in every if spec.part in HEAD_PARTS)
        for n, member in enumerate(self.members):
            own = [_plain(spec)[1] for spec in every if spec.name.startswith(f"{n}.")]
            yield from (_numbered(n, spec) for spec in member.published_specs(own, manifest))

    def published(self, tensors: Tensors, specs: Iterable[TensorSpec]) -> Tensors:
        """See :class:`Method`."""
        return self._each(tensors, specs, lambda member, own, named: member.published(own, named))

    def resumed(self, published: Tensors, specs: Iterable[TensorSpec]) -> Tensors:
        """See :class:`Method`."""
        return self._each(published, specs, lambda member, own, named: member.resumed(own, named))

    def settled(
        self, tensors: Tensors, settings: HybridSettings, number: int, rounds: int
    ) -> Tensors:
        """See :class:`Method`."""
        own = iter(settings.members)
        return self._each(
            tensors, (), lambda member, part, _: member.settled(part, next(own), number, rounds)
        )

    def _each(
        self,
        tensors: Tensors,
        specs: Iterable[TensorSpec],
        change: Callable[[Method[Any], Tensors, list[TensorSpec]], Tensors],
    ) -> Tensors:
        """Every member's tensors changed, those of the head as they are."""
        changed, every = dict(tensors), list(specs)
        for n, member in enumerate(self.members):
            own = of_member(n, tensors)
            for name in own:
                del changed[f"{n}.{name}"]
            named = [_plain(spec)[1] for spec in every if spec.name.startswith(f"{n}.")]
            changed |= {f"{n}.{name}": x for name, x in change(member, own, named).items()}
        return changed

    def saved_name(self, name: str) -> str:
        """The member's, behind its number."""
        n, member, own = self._member(name)
        return f"{n}.{member.saved_name(own)}" if member else name

    def canonical_name(self, key: str) -> str:
        """See :class:`Method`."""
        n, member, own = self._member(key)
        return f"{n}.{member.canonical_name(own)}" if member else key

    def _member(self, name: str) -> tuple[str, Method[Any] | None, str]:
        """Number, method, and what is behind the number."""
        n, _, own = name.partition(".")
        numbered = dict(zip(map(str, range(len(self.members))), self.members, strict=True))
        return n, numbered.get(n), own


def _turns(members: Members) -> tuple[frozenset[str], ...]:
    """As many as it takes until every member is at its first again."""
    count = math.lcm(*(len(member.turns) for member in members))
    return tuple(_parts(m.turns[turn % len(m.turns)] for m in members) for turn in range(count))


def _parts(members: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset(f"{n}.{part}" for n, parts in enumerate(members) for part in parts)


def of_member(number: int, values: Mapping[str, V]) -> dict[str, V]:
    """A member's, without its number."""
    start = f"{number}."
    return {name.removeprefix(start): x for name, x in values.items() if name.startswith(start)}


def _numbered(number: int, spec: TensorSpec) -> TensorSpec:
    return replace(spec, name=f"{number}.{spec.name}", part=f"{number}.{spec.part}")


def _plain(spec: TensorSpec) -> tuple[int, TensorSpec]:
    """A member's number, and the tensor as that method knows it."""
    number, _, name = spec.name.partition(".")
    return int(number), replace(spec, name=name, part=spec.part.partition(".")[2])


def _place(number: int, text: str) -> str:
    """A field of a member's settings, where they stand in the plan."""
    return text.replace("adapter.", f"adapter.members.{number}.", 1)
