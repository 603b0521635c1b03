"""What a client checks of an instruction and its adapter before it reads a row. (P-4.2)

What is refused here is refused in clear: it hangs on the coordinator's message, the plan and the base.
"""

from __future__ import annotations

from protocol.encoding import vector_digest
from protocol.errors import ArtefactError, PlanError
from protocol.layout import Tensors, Vector
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
    """The method's settings and texts of the plan's length fit the base. Raises PlanError."""
    recipe.verify_settings()
    plan, manifest = recipe.plan, recipe.manifest
    if plan.task.max_length + recipe.tokens > manifest.max_positions:
        raise PlanError(
            f"`task.max_length` {plan.task.max_length} and a prompt of {recipe.tokens} are more "
            f"than the base's {manifest.max_positions} positions",
            "lower task.max_length",
        )
