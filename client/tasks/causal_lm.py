"""Chats and texts to token ids of which some count, and what a model makes of those."""

from __future__ import annotations

from collections.abc import Sequence

from client.batches import Encoded, settings_of
from client.data import Rows
from client.opened_base import OpenedBase
from client.pieces import TokenPieces, pieces_of
from client.tasks.writing import NOT_COUNTED, encoded_texts, score, standing, targets
from protocol.decoder_manifest import DecoderManifest
from protocol.errors import DataError
from protocol.recipe import Recipe
from protocol.tasks.causal_lm import CausalLm

__all__ = ["encode", "score", "targets"]


def encode(rows: Rows, recipe: Recipe, base: OpenedBase) -> Encoded:
    """The tokens that a device reads and is to write, and which of them count, cut to the plan's length.

    Raises DataError for a row of which nothing counts within it, unless the plan leaves such rows out.
    """
    task, manifest = recipe.plan.task, base.manifest
    assert isinstance(task, CausalLm)
    assert isinstance(manifest, DecoderManifest)
    ids: list[list[int]] = []
    wanted: list[list[int]] = []
    with settings_of(base.tokenizer, None) as pad_id:
        encoder = TokenPieces(base.tokenizer, manifest.ends, source=str(base.folder))
        special = encoder.special_texts(manifest.begin)
        for row, text in enumerate(rows.texts):
            with standing(rows, row):
                tokens, counts = encoder.encode(pieces_of(text, base.template, special))
            following = _targets(tokens[: task.max_length], counts[: task.max_length])
            if max(following, default=NOT_COUNTED) >= 0:
                ids.append(tokens[: task.max_length])
                wanted.append(following)
            elif task.unanswered == "refuse":
                raise _nothing_counts(rows.place(row), tokens, counts, task.max_length)
    if not ids:
        raise DataError(
            f"no row's answer begins within {task.max_length} tokens", "raise task.max_length"
        )
    return encoded_texts(ids, wanted, pad_id)


def _targets(tokens: Sequence[int], counts: Sequence[bool]) -> list[int]:
    """Of each token the one that follows, where that counts."""
    following = [
        token if count else NOT_COUNTED for token, count in zip(tokens, counts, strict=True)
    ]
    return [*following[1:], NOT_COUNTED] if following else []


def _nothing_counts(
    place: str, tokens: Sequence[int], counts: Sequence[bool], most: int
) -> DataError:
    if True in counts[1:]:
        begins = counts.index(True, 1)
        return DataError(
            f"{place}: its answer begins behind {begins} tokens, the plan takes {most}",
            'raise task.max_length, shorten the row, or leave such rows out: task.unanswered = "skip"',
            public="a row whose answer begins behind task.max_length",
        )
    return DataError(
        f"{place}: of its {len(tokens)} tokens none can be learnt",
        "remove the row",
        public="a row of which nothing can be learnt",
    )
