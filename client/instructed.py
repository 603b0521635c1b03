"""What a client checks of an instruction and its adapter before it reads a row. (P-4.2)

What is refused here is refused in clear: it hangs on the coordinator's message, the plan and the base.
"""

from __future__ import annotations

from protocol.encoding import vector_digest
from protocol.errors import ArtefactError
from protocol.layout import Tensors, Vector
from protocol.legality import verify_legal
from protocol.recipe import Recipe, verify_magnitude
from protocol.wire import Instruction


def check_instruction(recipe: Recipe, instruction: Instruction, adapter: Vector) -> Tensors:
    """The full adapter's tensors, ``adapter`` being the part that is sent. Raises ArtefactError."""
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
    return tensors


def verify_fits(recipe: Recipe) -> None:
    """The plan is one that may be run on this base, whoever sent it. Raises PlanError."""
    verify_legal(recipe.plan, recipe.manifest)
