"""Aggregation rules as contracts: data that the plan, the client and the server all read.

A contract says what is trained and sent in round t and whether the rule is exact for the mean of
products B @ A (or B @ R @ A). Every rule needs the sum of updates alone. Code asks the contract, never
the rule's name. Sources are named per rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from protocol.errors import PlanError
from protocol.misspelling import nearest


class Role(StrEnum):
    """What a trained tensor is."""

    LORA_A = "lora_A"
    LORA_B = "lora_B"
    LORA_R = "lora_R"
    PROMPT = "prompt"
    SCALE = "scale"
    SHIFT = "shift"
    HEAD = "head"


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleContract:
    """What a rule promises and demands.

    ``phases``: roles trained and sent; round t (from 1) uses ``phases[(t - 1) % len(phases)]``.
    The head, where there is one, is trained and averaged as a plain tensor in every phase.
    """

    name: str
    summary: str
    source: str
    method: Literal["lora", "prompt"]
    phases: tuple[frozenset[Role], ...]
    exact: bool

    def roles(self, round_number: int) -> frozenset[Role]:
        """Roles trained and sent in ``round_number`` (from 1), the head included."""
        return self.phases[(round_number - 1) % len(self.phases)] | {Role.HEAD}

    @property
    def trained(self) -> frozenset[Role]:
        """Roles that some round trains; tensors of any other keep their values of round 0."""
        return frozenset({Role.HEAD}).union(*self.phases)

    @property
    def has_core(self) -> bool:
        """Whether a square core R is trained between factors A and B that stay as they started."""
        return any(Role.LORA_R in phase for phase in self.phases)


_A, _B, _AB = (
    frozenset({Role.LORA_A}),
    frozenset({Role.LORA_B}),
    frozenset({Role.LORA_A, Role.LORA_B}),
)

RULES: dict[str, RuleContract] = {
    rule.name: rule
    for rule in (
        RuleContract(
            name="alternating",
            summary="rounds train B, then A, then B: each round is exact, half the upload",
            source="RoLoRA, arXiv 2502.01755",
            method="lora",
            phases=(_B, _A),
            exact=True,
        ),
        RuleContract(
            name="ffa-lora",
            summary="A is random and frozen, B is trained: exact, half the upload, less expressive",
            source="FFA-LoRA, arXiv 2403.12313",
            method="lora",
            phases=(_B,),
            exact=True,
        ),
        RuleContract(
            name="fed-sb",
            summary="A and B are random and frozen, a core R (r x r) between them is trained: exact, "
            "a very small upload that does not grow with the layers' width, least expressive",
            source="Fed-SB, arXiv 2502.15436; without its start from gradients of data",
            method="lora",
            phases=(frozenset({Role.LORA_R}),),
            exact=True,
        ),
        RuleContract(
            name="fedit",
            summary="A and B are trained and averaged apart: the usual baseline, not exact",
            source="FedIT, arXiv 2305.05644",
            method="lora",
            phases=(_AB,),
            exact=False,
        ),
        RuleContract(
            name="prompt-mean",
            summary="the soft prompt is averaged",
            source="FedPrompt, arXiv 2208.12268",
            method="prompt",
            phases=(frozenset({Role.PROMPT}),),
            exact=True,
        ),
    )
}


def rule_named(name: str) -> RuleContract:
    """The contract of ``name``. Raises PlanError with the nearest known name."""
    try:
        return RULES[name]
    except KeyError:
        if name in ("flora", "flexlora"):
            raise PlanError(
                f"`rule.name`: `{name}` reads single updates, which no coordinator sees",
                "use `alternating` or `fedit`",
            ) from None
        near = nearest(name, RULES, cutoff=0.4)
        hint = f"did you mean `{near}`?" if near else f"known rules: {', '.join(RULES)}"
        raise PlanError(f"`rule.name`: there is no rule `{name}`", hint) from None
