"""Texts to token ids, and what they become to the tokens that count."""

from __future__ import annotations

from client.batches import Encoded, settings_of
from client.data import Rows
from client.opened_base import OpenedBase
from client.pieces import TokenPieces
from client.tasks.writing import encoded_texts, score, standing, targets
from protocol.errors import DataError
from protocol.recipe import Recipe
from protocol.tasks.seq2seq_lm import Seq2SeqLm

__all__ = ["encode", "score", "targets"]


def encode(rows: Rows, recipe: Recipe, base: OpenedBase) -> Encoded:
    """The source as a device reads it, the target with the token that ends it, both cut to the plan's length.

    Raises DataError for a target of which nothing is left, unless the plan leaves such rows out.
    """
    task = recipe.plan.task
    assert isinstance(task, Seq2SeqLm)
    ids: list[list[int]] = []
    wanted: list[list[int]] = []
    with settings_of(base.tokenizer, None) as pad_id:
        encoder = TokenPieces(base.tokenizer, recipe.ends, source=str(base.folder))
        for row, (text, target) in enumerate(zip(rows.texts, rows.targets, strict=True)):
            with standing(rows, row):
                source = encoder.read(task.prefix + text)
                answer = encoder.whole(target)
            if source and answer:
                ids.append(source[: task.max_length])
                wanted.append(answer[: task.max_length])
            elif task.unanswered == "refuse":
                raise DataError(
                    f"{rows.place(row)}: its {'target' if source else 'source'} has no tokens",
                    'remove the row, or leave such rows out: task.unanswered = "skip"',
                    public="a row without tokens",
                )
    if not ids:
        raise DataError("no row has tokens", "check the columns of the plan")
    return encoded_texts(ids, wanted, pad_id, apart=True)
