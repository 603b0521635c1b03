"""Aggregation rules: which parts of an adapter each round trains, of whatever method it is.

A rule is a schedule over the method's turns; what clients send of a round is combined by the mean of their
updates, so every rule needs the sum alone. Whether that is exact follows: it is where no round trains parts
of two turns, or parts in which the adapter is not linear. Code asks the rule, never its name. Sources are
named per rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from protocol.errors import PlanError
from protocol.layout import HEAD_PART
from protocol.methods.base import Method
from protocol.misspelling import nearest

Parts = frozenset[str]
GONE = {
    "flora": "it reads single updates, which no coordinator sees: use `alternating` or `mean`",
    "flexlora": "it reads single updates, which no coordinator sees: use `alternating` or `mean`",
    "fedit": "it is called `mean`",
    "ffa-lora": "it is called `first`",
    "fed-sb": 'it is a method: write `[adapter] method = "lora-sb"` and leave the rule out',
    "prompt-mean": "every rule takes a prompt: leave the rule out",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AggregationRule:
    """What a rule trains in turn: ``all`` parts at once, the method's ``turns``, or its ``first`` alone.

    The head is trained and averaged as a plain tensor in every round.
    """

    name: str
    summary: str
    source: str
    schedule: Literal["all", "turns", "first"]

    def phases(self, method: Method[Any]) -> tuple[Parts, ...]:
        """Parts that are trained and sent together, the head included: of :meth:`opening`, then in turn."""
        match self.schedule:
            case "all":
                trained = [frozenset[str]().union(*method.turns)]
            case "turns":
                trained = [*method.turns]
            case "first":
                trained = [method.turns[0]]
        return tuple(parts | {HEAD_PART} for parts in trained)

    def parts(self, method: Method[Any], turn: int) -> Parts:
        """Parts trained and sent in round ``turn`` (from 1), the head included."""
        phases = self.phases(method)
        return phases[phase_of(turn, count=len(phases), opening=self.opening(method))]

    def takes(self, method: Method[Any]) -> bool:
        """Whether a method that learns in its first rounds what it trains in others can do so."""
        return self.schedule == "turns" or not method.opening

    def opening(self, method: Method[Any]) -> int:
        """How many of the phases come once, before the others go round."""
        return method.opening if self.schedule == "turns" else 0

    def trained(self, method: Method[Any]) -> Parts:
        """Parts that some round trains; tensors of any other keep their values of round 0."""
        return frozenset[str]().union(*self.phases(method))

    def exact(self, method: Method[Any]) -> bool:
        """Whether the mean of updates is the mean of what they do to the base, in every round."""
        turns = [turn | {HEAD_PART} for turn in method.turns if not turn & method.nonlinear]
        return all(any(parts <= turn for turn in turns) for parts in self.phases(method))


RULES: dict[str, AggregationRule] = {
    rule.name: rule
    for rule in (
        AggregationRule(
            name="alternating",
            summary="rounds train one factor after the other: each round is exact, and the upload is that "
            "of a factor",
            source="RoLoRA, arXiv 2502.01755",
            schedule="turns",
        ),
        AggregationRule(
            name="first",
            summary="one factor is trained, the others stay as they were drawn: exact, less expressive",
            source="FFA-LoRA, arXiv 2403.12313",
            schedule="first",
        ),
        AggregationRule(
            name="mean",
            summary="all factors are trained and averaged apart: the usual baseline, not exact where "
            "there are several",
            source="FedIT, arXiv 2305.05644",
            schedule="all",
        ),
    )
}


def phase_of(turn: int, *, count: int, opening: int) -> int:
    """Place of round ``turn`` (from 1) among ``count`` phases: ``opening`` come once, the others go round."""
    if turn <= opening:
        return turn - 1
    return opening + (turn - 1 - opening) % (count - opening)


def exact_instead(method: Method[Any]) -> str:
    """What to do where every round has to be exact: the rule that trains most of what is linear."""
    for name in ("alternating", "first"):
        if RULES[name].exact(method):
            return f"use {name}"
    return "train `lora` with rule `alternating`"


def rule_named(name: str) -> AggregationRule:
    """The rule of ``name``. Raises PlanError with the nearest known name."""
    try:
        return RULES[name]
    except KeyError:
        near = nearest(name, RULES, cutoff=0.4)
        hint = f"did you mean `{near}`?" if near else f"known rules: {', '.join(RULES)}"
        raise PlanError(f"`rule.name`: there is no rule `{name}`", GONE.get(name, hint)) from None
