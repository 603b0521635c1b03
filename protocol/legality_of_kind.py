"""What a base that has no head asks of a plan, as (severity, field, cause, remedy)."""

from __future__ import annotations

from collections.abc import Iterator

from protocol.decoder_manifest import CHAT_TEMPLATE, WritingManifest
from protocol.denoiser_manifest import DenoiserManifest
from protocol.manifest import HeadManifest, does
from protocol.privacy.legality import Said
from protocol.recipe import Recipe
from protocol.tasks.image_generation import ImageGeneration


def said_of_kind(recipe: Recipe) -> Iterator[Said]:
    """Of a base that writes or draws; nothing of one with a head."""
    if isinstance(recipe.manifest, HeadManifest):
        return
    if recipe.plan.local.engine == "torch":
        yield (
            "error",
            "local.engine",
            f"bases that {does(recipe.manifest)} are trained by ONNX Runtime alone",
            'leave it out, or use engine = "onnx"',
        )
    yield from _writing(recipe)
    yield from _drawing(recipe)


def _writing(recipe: Recipe) -> Iterator[Said]:
    """Chats are of bases that know them."""
    task, manifest = recipe.plan.task, recipe.manifest
    chats = task.kind == "causal-lm" and task.form == "messages"
    if isinstance(manifest, WritingManifest) and chats and CHAT_TEMPLATE not in manifest.files:
        yield (
            "error",
            "task.form",
            "the base has no chat template, so it knows no chats",
            'use form = "prompt" or "text", or a base that was trained to chat',
        )


def _drawing(recipe: Recipe) -> Iterator[Said]:
    """Labels are classes, and images may be remembered."""
    task, manifest = recipe.plan.task, recipe.manifest
    if not isinstance(manifest, DenoiserManifest) or not isinstance(task, ImageGeneration):
        return
    if len(task.labels) > manifest.classes:
        yield (
            "error",
            "task.labels",
            f"there are {len(task.labels)} labels, and the base draws {manifest.classes} classes",
            "name fewer, or take a base with more: a label's place in the list is its class",
        )
    elif not recipe.plan.private:
        yield (
            "note",
            "privacy",
            "a model that draws may draw images that it was trained on, or parts of them",
            "look at what it draws before it is released; noise on updates bounds what is learnt of a client",
        )
