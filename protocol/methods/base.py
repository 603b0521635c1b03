"""What a PEFT method says of itself: its settings, tensors, forms and names. (P-2.1)

One module per method, one instance in the registry; whoever needs to know something of a method asks it
here, and nobody compares names. Nothing needs torch: ``forms`` is written with the operators that numpy's
arrays share with the symbols of a program (``@ * + .T .transpose``, and those of ``protocol.forms``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from protocol.errors import PlanError
from protocol.frozen_linears import FrozenLinears
from protocol.layout import Tensors, TensorSpec
from protocol.manifest import BaseManifest
from protocol.section import Section

Remark = tuple[Literal["error", "warning", "note"], str, str, str]  # severity, field, cause, remedy
Constants = Mapping[str, float]  # what forms hang on beside the tensors
# Of a tensor's dimensions: a name where one is free, None where it is the base's.
Dimensions = tuple[str | None, ...]
Free = Mapping[str, Dimensions]  # by part


# Where a method acts, of a linear from within (P-1.11): shifting what it gives, scaling that, beside it,
# behind it; or around the whole model.
Place = Literal["shift", "scale", "beside", "behind", "around"]

RANK = "rank"


def rank_axis(dimensions: Dimensions) -> int | None:
    """Along which dimension a matrix of a part has the rank, or a hybrid's member its own; one alone."""
    axes = [axis for axis, free in enumerate(dimensions) if free and free.split(".")[-1] == RANK]
    return axes[0] if len(dimensions) == 2 and len(axes) == 1 else None


class Settings(Section):
    """The keys of ``[adapter]``."""

    method: str


S = TypeVar("S", bound=Settings)


class Method(ABC, Generic[S]):
    """A kind of adapter.

    ``turns`` are sets of parts; within one of them the adapted function is linear in what is trained, all
    other parts being fixed, so that a mean of updates is the mean of what they do. Parts in no turn keep
    their values of round 0. The head is the task's and stands in no turn. ``nonlinear`` parts are the
    exception: the function is linear in none of them, so rounds that train them are not exact.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    # Keys of `[adapter]` that fit a base of a few dozen features: tests over all methods begin with them.
    tried: ClassVar[Mapping[str, Any]] = {}
    # Keys of a plan under which benchmarks measure it, where those are not the defaults.
    measured: ClassVar[Mapping[str, str]] = {}
    # Names that papers and peft have for it, in lower case, each with what a plan says in its place.
    elsewhere: ClassVar[Mapping[str, str]] = {}
    peft_type: ClassVar[str]
    settings: type[S]
    turns: ClassVar[tuple[frozenset[str], ...]]
    opening: ClassVar[int] = 0  # of the turns the first ones, which are taken once and never again
    nonlinear: ClassVar[frozenset[str]] = frozenset()
    free: ClassVar[Free]
    scales: ClassVar[bool] = False  # whether linears' scales are filled
    writes: ClassVar[bool] = False  # whether only bases that write text take it
    own_opener: ClassVar[bool] = False  # peft alone would read a folder otherwise than its opener
    of_peft: ClassVar[bool] = True  # whether peft has its type
    # By which a hybrid's members are put around one another in torch.
    place: ClassVar[Place] = "beside"
    # Parts that are trained in a row where peft has its factor B alone; none or one: what peft has.
    sequence: ClassVar[tuple[str, ...]] = ()
    # Of peft's factors those that stay as peft begins them.
    idle: ClassVar[frozenset[str]] = frozenset()
    reads_base: ClassVar[bool] = False  # whether its forms hang on weights of the base (`on_base`)
    # Keys of an adapter_config.json that are true of its folders, and of no other method's.
    switches: ClassVar[frozenset[str]] = frozenset()
    nested: ClassVar[bool] = False  # whether its first ranks are trained to answer alone
    reader: ClassVar[str] = ""  # the method that reads its PEFT folders, where that is another
    saved_prefix: ClassVar[str] = "base_model.model."  # of every name in a PEFT folder
    # Parts that `published` multiplies into others: a PEFT folder has none, and the identity in their place.
    folded: ClassVar[frozenset[str]] = frozenset()

    def fitted(self, settings: S) -> Method[S]:
        """The same with the turns and parts that these settings leave it."""
        return self

    @abstractmethod
    def specs(self, settings: S, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """The tensors, without the head, in any order. Raises PlanError for a target that is not there."""

    @abstractmethod
    def forms(self, tensors: Mapping[str, Any], constants: Constants) -> dict[str, Any]:
        """What trained or published tensors put into slots of the answering graph, by name. (P-1.11)"""

    def on_base(
        self, tensors: Mapping[str, Any], constants: Constants, linears: FrozenLinears
    ) -> Mapping[str, Any]:
        """``tensors`` with whatever else ``forms`` take, which the base gives. (``reads_base``)"""
        return tensors

    @abstractmethod
    def peft_config(self, settings: S, manifest: BaseManifest) -> dict[str, Any]:
        """The method's own keys of ``adapter_config.json``, ``peft_type`` among them."""

    def in_peft(
        self, settings: S, manifest: BaseManifest, tensors: Tensors
    ) -> tuple[dict[str, Any], Tensors] | None:
        """The adapter as peft's own method of this name has it, where a folder is of another type.

        Its keys of a config and its tensors by peft's names; tests compare what the two answer.
        """
        return None

    def remarks(self, settings: S, manifest: BaseManifest) -> Iterable[Remark]:
        """What is wrong or notable about these settings on this base."""
        return ()

    def tokens(self, settings: S) -> int:
        """Positions that are not left to a text."""
        return 0

    def encoder(
        self, settings: S, spec: TensorSpec, manifest: BaseManifest
    ) -> tuple[TensorSpec, ...]:
        """What clients train in a tensor's place, which it gives; where nothing, itself. (P-4.12)"""
        return ()

    def constants(self, settings: S) -> Constants:
        """What ``forms`` is given by a plan."""
        return {}

    def reading(self, known: Mapping[str, Method[Any]]) -> Method[Any]:
        """The method, of ``known`` ones, that reads what this one publishes."""
        return known[self.reader or self.name]

    def reading_of(self, config: Mapping[str, Any], *, source: str) -> Method[Any]:
        """The same for an ``adapter_config.json`` that it reads. Raises ArtefactError."""
        return self

    def constants_of(self, config: Mapping[str, Any]) -> Constants:
        """The same by an ``adapter_config.json``. Raises KeyError, TypeError, ValueError, ArithmeticError."""
        return {}

    def reads(self, config: Mapping[str, Any]) -> bool:
        """Whether an ``adapter_config.json`` is of this method."""
        switched = all(config.get(key) is True for key in self.switches)
        return switched and config.get("peft_type") == self.peft_type

    def published_specs(
        self, specs: Iterable[TensorSpec], manifest: BaseManifest
    ) -> Iterable[TensorSpec]:
        """The tensors of a PEFT folder, the head among them as in ``specs``."""
        return [spec for spec in specs if spec.part not in self.folded]

    def published(self, tensors: Tensors, specs: Iterable[TensorSpec]) -> Tensors:
        """The adapter as every PEFT reader computes it: tensors of ``specs``, the published ones.

        Others get the same bytes from the same tensors.
        """
        return tensors

    def resumed(self, published: Tensors, specs: Iterable[TensorSpec]) -> Tensors:
        """Tensors of ``specs`` that are published as ``published``."""
        return published | {s.name: _identity(s.shape) for s in specs if s.part in self.folded}

    def ranks_used(self, settings: S, generator: np.random.Generator) -> Iterator[int] | None:
        """Of every step how many first places of dimensions of the rank it uses; None: all. (P-4.3)

        It is asked for once a round and client; what a step leaves out stays as it is.
        """
        return None

    def settled(self, tensors: Tensors, settings: S, number: int, rounds: int) -> Tensors:
        """What the coordinator makes of the adapter after round ``number``'s step, as auditors do. (P-4.7)"""
        return tensors

    def saved_name(self, name: str) -> str:
        """A published tensor's key in ``adapter_model.safetensors``."""
        return self.saved_prefix + name

    def canonical_name(self, key: str) -> str:
        """The reverse of :meth:`saved_name`, for keys that begin with the prefix."""
        return key.removeprefix(self.saved_prefix)

    def trained_name(self, name: str) -> str:
        """The parameter's name in peft's model, without that of the adapter."""
        return self.saved_name(name)


def _identity(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """What leaves a factor as it is: one matrix or several, or a vector of ones for what scales."""
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    return np.broadcast_to(np.eye(shape[-1], dtype=np.float32), shape).copy()


def remark_of(error: PlanError) -> Remark:
    """What a method raises for settings that do not fit, as one of its remarks."""
    field, _, cause = error.cause.removeprefix("`").partition("`: ")
    return "error", field, cause, error.remedy
