"""Whether parties could read and train on what round 0 holds, as (severity, field, cause, remedy). (P-4.2)"""

from __future__ import annotations

from collections.abc import Iterator

from protocol.documents import MOST_BYTES
from protocol.manifest import HeadManifest
from protocol.plan import Plan
from protocol.privacy.legality import Said
from protocol.recipe import LARGEST, Recipe


def said_of_head(plan: Plan) -> Iterator[Said]:
    """What of a head that the plan begins with no client would read (P-1.7) or train on."""
    if plan.head is None:
        return
    if (size := len(plan.render())) > MOST_BYTES:
        yield (
            "error",
            "head.rows",
            f"with them the plan is a document of {size:,} bytes, and nobody reads more than {MOST_BYTES:,}",
            "leave the head out, name fewer labels, or take a base that gives fewer numbers for a text",
        )
    if plan.start is not None:
        return  # the head is that adapter's
    for field, coded in (("head", plan.head), ("head.directions", plan.head.directions)):
        if coded is not None and (largest := coded.law.bound) > LARGEST:
            yield (
                "error",
                f"{field}.scale",
                f"a code times it is {largest:.3g} in magnitude, the most of a number is {LARGEST:g}",
                "write the head anew: `fedge plan head` with a shorter --length",
            )


def said_of_head_on(recipe: Recipe) -> Iterator[Said]:
    """A head that the plan begins with, on this base."""
    head, manifest = recipe.plan.head, recipe.manifest
    if head is None or not isinstance(manifest, HeadManifest):
        return
    if (width := head.width) != manifest.head.in_features:
        yield (
            "error",
            "head.directions.rows" if head.directions else "head.rows",
            f"they have {width} numbers, the base gives {manifest.head.in_features} for a text",
            "write them anew: `fedge plan head`",
        )
    if not head.trained and recipe.trainable == recipe.head_parts:
        yield (
            "warning",
            "head.trained",
            f"method `{recipe.plan.adapter.method}` trains the head alone, of which the biases are left",
            "train it, or take another method",
        )
    if recipe.plan.start is not None:
        yield (
            "note",
            "head.rows",
            "the head is the one of the adapter that the run goes on from",
            "",
        )


def said_of_round_0(recipe: Recipe) -> Iterator[Said]:
    """What is drawn, where the base makes it too large. Raises PlanError for a target that is not there."""
    if recipe.plan.start is None and (beyond := recipe.beyond()):
        name, largest = beyond
        yield (
            "error",
            "adapter.method",
            f"round 0 of `{name}` is {largest:.3g} in magnitude on this base, the most is {LARGEST:g}",
            "take a method without it",
        )
