"""What a client checks of an instruction and its adapter before it reads a row. (P-4.2)

What is refused here is refused in clear: it hangs on the coordinator's message, the plan and the base.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.encoding import vector_digest
from protocol.errors import ArtefactError, PlanError
from protocol.layout import Tensors, Vector
from protocol.legality import verify_legal
from protocol.plan import Plan
from protocol.recipe import Recipe, verify_magnitude
from protocol.wire import Instruction


@dataclass(frozen=True, kw_only=True)
class Received:
    """The adapter to train, and what the plan's terms pull it to over all rounds; tensors by name.

    ``round_0`` is None where the plan has no start: then it follows from the seed.
    """

    adapter: Tensors
    round_0: Tensors | None


def verify_named(plan: Plan, client: str) -> None:
    """Raises PlanError where the plan names clients and this one is not among them. (P-4.1)"""
    if not plan.cohort.takes(client):
        raise PlanError(
            f"`cohort.clients` of the plan does not name {client}",
            "give this client the plan of its own cluster, or the name by which the plan knows it",
        )


def check_instruction(
    recipe: Recipe, instruction: Instruction, adapter: Vector, round_0: Vector | None = None
) -> Received:
    """Full adapters, the arguments being the parts that are sent of them. Raises ArtefactError."""
    plan, manifest = recipe.plan, recipe.manifest
    if instruction.plan_digest != plan.digest:
        raise ArtefactError(
            f"the coordinator runs plan {instruction.plan_digest[:12]}…, "
            f"this client has {plan.digest[:12]}…",
            "give every party the same plan file",
        )
    if instruction.base != manifest.fingerprint:
        raise ArtefactError(
            f"the coordinator names base {instruction.base[:12]}…, "
            f"this client has {manifest.fingerprint[:12]}…",
            "give every party the same base",
        )
    if not 1 <= instruction.round <= plan.rounds:
        raise ArtefactError(
            f"the instruction names round {instruction.round} of {plan.rounds}",
            "run the same version of fedge on both sides",
        )
    if plan.start and instruction.round == 1 and instruction.adapter_digest != plan.start.adapter:
        raise ArtefactError(
            f"the coordinator begins with adapter {instruction.adapter_digest[:12]}…, the plan goes on from "
            f"{plan.start.adapter[:12]}…",
            "ask the coordinator's operator",
        )
    tensors = recipe.completed(adapter)
    if vector_digest(recipe.layout.flatten(tensors)) != instruction.adapter_digest:
        raise ArtefactError(
            "the adapter received is not the one the instruction names (another digest)",
            "check the connection and the coordinator's checkpoint",
        )
    verify_magnitude(adapter)
    return Received(adapter=tensors, round_0=_round_0(recipe, instruction, tensors, round_0))


def _round_0(
    recipe: Recipe, instruction: Instruction, adapter: Tensors, sent: Vector | None
) -> Tensors | None:
    """What the plan goes on from, compared with the plan's digest of it: nobody's word. (P-4.2)"""
    start = recipe.plan.start
    if (sent is not None) != recipe.sends_round_0(instruction.round):
        verb = "lacks" if sent is None else "has"
        raise ArtefactError(
            f"the message {verb} what the run goes on from beside the adapter, against the plan",
            "run the same version of fedge on both sides",
        )
    if start is None:
        return None
    if sent is None:
        return adapter if instruction.round == 1 else None
    tensors = recipe.completed(sent)
    if vector_digest(recipe.layout.flatten(tensors)) != start.adapter:
        raise ArtefactError(
            f"what the message calls round 0 is not adapter {start.adapter[:12]}… that the plan goes on from",
            "ask the coordinator's operator",
        )
    verify_magnitude(sent)
    return tensors


def verify_fits(recipe: Recipe) -> None:
    """The plan is one that may be run on this base, whoever sent it. Raises PlanError."""
    verify_legal(recipe.plan, recipe.manifest)
