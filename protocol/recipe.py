"""A plan on a base, resolved once: its method, rule, layout and names. (P-2)

Names of tensors are the module paths of the unwrapped Hugging Face model, without PEFT's prefixes; what
stands behind the path is the method's. The head has ``<path>.weight`` (outputs, in) and ``<path>.bias``;
one of low rank ``<path>.mix_T`` and ``<path>.directions_T`` of every turn T in the weight's place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from protocol.decoder_manifest import WritingManifest
from protocol.encoding import seed_from
from protocol.errors import ArtefactError, PlanError
from protocol.head_tensors import (
    DIRECTIONS,
    head_specs,
    head_turns,
    mixed_head,
    turns_together,
    whole_head,
    with_whole_head,
)
from protocol.layout import HEAD_PARTS, Layout, Tensors, TensorSpec, Vector
from protocol.magnitude import pruned
from protocol.manifest import TYPE_IDS, HeadManifest, Manifest
from protocol.manifests import AnyManifest
from protocol.methods import method_of
from protocol.methods.base import Constants, Dimensions, Method, Remark
from protocol.plan import Plan
from protocol.rules import AggregationRule, Parts, phase_of, rule_named

LARGEST = 64.0  # magnitude of a coordinate that clients train on (P-4.2)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What parties that share ``plan`` and ``manifest`` train, send, combine and publish."""

    plan: Plan
    manifest: AnyManifest

    def __post_init__(self) -> None:
        """Raises PlanError for a rule that there is not."""
        rule_named(self.plan.rule.name)

    @cached_property
    def method(self) -> Method[Any]:
        """The plan's PEFT method."""
        return method_of(self.plan.adapter)

    @cached_property
    def rule(self) -> AggregationRule:
        """The plan's rule."""
        return rule_named(self.plan.rule.name)

    @cached_property
    def layout(self) -> Layout:
        """The full adapter's, head included. Raises PlanError for a target that is not there."""
        specs = [*self.method.specs(self.plan.adapter, self.manifest), *self._head()]
        return Layout(tuple(sorted(specs, key=lambda spec: spec.name)))

    def _head(self) -> Iterable[TensorSpec]:
        outputs = self.plan.task.outputs
        if not outputs or not isinstance(self.manifest, HeadManifest):
            return  # the base's own output layer answers
        width = self.manifest.head.in_features
        yield from head_specs(self.plan.head, outputs=outputs, width=width)

    @property
    def typed(self) -> bool:
        """Whether rows are pairs, and the base tells the first text's tokens from the second's. (P-1.12)"""
        return self.plan.task.pairs and TYPE_IDS in self.manifest.graph.inputs

    @property
    def boxed(self) -> bool:
        """Whether rows are words with their boxes. (P-1.17)"""
        return isinstance(self.manifest, Manifest) and self.manifest.boxed

    @property
    def ends(self) -> list[int]:
        """Tokens that end what the base writes; none of one that writes nothing."""
        return self.manifest.ends if isinstance(self.manifest, WritingManifest) else []

    @cached_property
    def phases(self) -> tuple[Parts, ...]:
        """Parts that the plan's rounds train, by turns; its first round may come later in them."""
        adapter, head = self.rule.phases(self.method), head_turns(self.plan.head)
        again = turns_together(len(adapter) - self._opening, self.plan.head)
        return tuple(
            self.rule.parts(self.method, turn) | head[(turn - 1) % len(head)]
            for turn in range(1, self._opening + again + 1)
        )

    @property
    def _opening(self) -> int:
        return self.rule.opening(self.method)

    def parts(self, number: int) -> Parts:
        """Parts that round ``number`` of the plan trains and sends."""
        return self.parts_of_turn(self.plan.turn(number))

    def parts_of_turn(self, turn: int) -> Parts:
        """The same of a round by its number over the runs before as well."""
        return self.phases[phase_of(turn, count=len(self.phases), opening=self._opening)]

    def round_layout(self, number: int) -> Layout:
        """An update's in round ``number``."""
        return self.layout.only(self.parts(number))

    @cached_property
    def trainable(self) -> Parts:
        """Parts that some rule would train, the head included."""
        return self.head_parts.union(*self.method.turns)

    @cached_property
    def head_parts(self) -> Parts:
        """Parts of the head that rounds train."""
        return frozenset[str]().union(*head_turns(self.plan.head))

    @cached_property
    def sent_layout(self) -> Layout:
        """What clients are sent of the adapter: the tensors that some round trains. (P-2.6)

        All of it where the plan has a start: the others then do not follow from its seed.
        """
        return self.layout if self.plan.start else self.layout.only(self.trained)

    def sends_round_0(self, number: int) -> bool:
        """Whether clients of round ``number`` get what the run goes on from beside the adapter. (P-4.2)

        Where a plan has no start they derive it, in round 1 it is the adapter.
        """
        return self.plan.start is not None and self.plan.local.l2_sp > 0 and number > 1

    def sent_in(self, number: int) -> int:
        """Numbers of adapters that a client is sent in round ``number``."""
        return self.sent_layout.size * (2 if self.sends_round_0(number) else 1)

    @cached_property
    def trained(self) -> Parts:
        """Parts that some round trains."""
        return frozenset[str]().union(*self.phases)

    def completed(self, vector: Vector) -> Tensors:
        """The full adapter of the vector that was sent; what no round trains is derived. (P-2.6)

        Raises ArtefactError when the length differs.
        """
        tensors = self.sent_layout.unflatten(vector)
        if len(tensors) < len(self.layout.specs):
            start = self.start()
            tensors |= {name: start[name].copy() for name in start.keys() - tensors.keys()}
        return tensors

    def start(self) -> Tensors:
        """Round 0, the same bytes for whoever derives it; not to be changed. (P-2.3)"""
        return _start(self.layout, self.plan.seed)

    def beyond(self) -> tuple[str, float] | None:
        """A tensor that is drawn for round 0 and that clients would refuse, and its magnitude. (P-4.2)

        Nothing is drawn whose law stays within the bound, so this costs nothing for nearly every plan.
        """
        for spec in self.layout.specs:
            if spec.law.kind != "codes" and not spec.law.bound <= LARGEST:
                seed = seed_from("initial", self.plan.seed, spec.name)
                largest = float(np.abs(spec.law.draw(seed, spec.shape)).max())
                if not largest <= LARGEST:
                    return spec.name, largest
        return None

    @cached_property
    def constants(self) -> Constants:
        """What the method's forms hang on beside its tensors."""
        return self.method.constants(self.plan.adapter)

    def encoder(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """What clients train in a tensor's place, which it gives; where nothing, itself. (P-4.12)"""
        if spec.part in HEAD_PARTS:
            return ()
        return self.method.encoder(self.plan.adapter, spec, self.manifest)

    @property
    def encoder_size(self) -> int:
        """Numbers of all such networks, of which nobody but the client in training has any."""
        return sum(each.size for spec in self.layout.specs for each in self.encoder(spec))

    @property
    def tokens(self) -> int:
        """Positions that the adapter takes from a text."""
        return self.method.tokens(self.plan.adapter)

    def remarks(self) -> Iterable[Remark]:
        """What is wrong or notable about the method's settings on this base."""
        return self.method.remarks(self.plan.adapter, self.manifest)

    def verify_settings(self) -> None:
        """The method's settings fit the base. Raises PlanError with the first error of :meth:`remarks`."""
        for severity, field, cause, remedy in self.remarks():
            if severity == "error":
                raise PlanError(f"`{field}`: {cause}", remedy)

    def published(self, tensors: Tensors) -> Tensors:
        """The adapter as every PEFT reader computes it; its digest is the release's. (P-5.1, P-5.6)

        It is the coordinator's, cut down: rounds go on from ``tensors``.
        """
        plain = self.method.published(whole_head(tensors), self.published_layout.specs)
        names = [spec.name for spec in self.prunable]
        return pruned(plain, names, self.plan.release.keep)

    @cached_property
    def prunable(self) -> tuple[TensorSpec, ...]:
        """What is published beside the head, which stays whole. (P-5.6)"""
        return tuple(spec for spec in self.published_layout.specs if spec.part not in HEAD_PARTS)

    @cached_property
    def published_layout(self) -> Layout:
        """What :meth:`published` gives."""
        whole = with_whole_head(self.layout.specs)
        specs = self.method.published_specs(list(whole), self.manifest)
        return Layout(tuple(sorted(specs, key=lambda spec: spec.name)))

    def resumed(self, published: Tensors) -> Tensors:
        """A full adapter that is published as ``published``; a head of low rank up to rounding.

        Raises ArtefactError for a head that is none of the plan's directions.
        """
        if self.plan.head is not None:
            published = mixed_head(published, self.start())
        return self.method.resumed(published, self.layout.specs)

    def dimensions(self, spec: TensorSpec) -> Dimensions:
        """Which dimensions of a tensor an adapter chooses."""
        if spec.part not in HEAD_PARTS:
            return self.method.free[spec.part]
        if spec.name.startswith(DIRECTIONS):
            return (None, None)
        return ("labels", None)


@lru_cache(maxsize=2)
def _start(layout: Layout, seed: int) -> Tensors:
    # Orthonormal factors take a second for 2 million numbers, and a message is checked more than once.
    return initial_adapter(layout, seed=seed)


def initial_adapter(layout: Layout, *, seed: int) -> Tensors:
    """Each tensor by its law, from a seed of its own. (P-2.3)"""
    return {
        spec.name: spec.law.draw(seed_from("initial", seed, spec.name), spec.shape)
        for spec in layout.specs
    }


def verify_magnitude(vector: Vector) -> None:
    """An adapter that can be trained on: (d,) finite, none beyond 64 in magnitude. Raises ArtefactError."""
    if not np.isfinite(vector).all():
        raise ArtefactError(
            "the adapter holds NaN or infinity", "go on from an earlier round's adapter"
        )
    if vector.size and (largest := float(np.abs(vector).max())) > LARGEST:
        raise ArtefactError(
            f"the adapter holds a value of magnitude {largest:.3g}, the most is {LARGEST:g}",
            "go on from an earlier round's adapter, with lower learning rates",
        )
