"""Chats and texts to token ids of which some count, and what a model makes of those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from client.batches import Encoded, settings_of
from client.data import Rows
from client.opened_base import OpenedBase
from client.pieces import TokenPieces, pieces_of
from protocol.decoder_manifest import DecoderManifest
from protocol.errors import DataError
from protocol.recipe import Recipe
from protocol.rows.read import Table
from protocol.tasks.causal_lm import CausalLm

NOT_COUNTED = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Rows, their tokens that count, how many of those were the likeliest, and their loss in nats."""

    examples: int
    tokens: int
    right: int
    loss: float

    @property
    def metrics(self) -> dict[str, float]:
        """``eval_examples``, ``eval_tokens``, ``eval_right`` and ``eval_loss``."""
        return {
            "eval_examples": float(self.examples),
            "eval_tokens": float(self.tokens),
            "eval_right": float(self.right),
            "eval_loss": self.loss,
        }

    @property
    def loss_sum(self) -> float:
        """Over the tokens."""
        return self.loss


def targets(table: Table, task: CausalLm) -> list[str]:
    """The reference answers."""
    return list(table.targets)


def encode(rows: Rows, recipe: Recipe, base: OpenedBase) -> Encoded:
    """The tokens that a device reads and is to write, and which of them count, cut to the plan's length.

    Raises DataError for a row of which nothing counts within it, unless the plan leaves such rows out.
    """
    task, manifest = recipe.plan.task, base.manifest
    assert isinstance(task, CausalLm)
    assert isinstance(manifest, DecoderManifest)
    ids: list[list[int]] = []
    targets: list[list[int]] = []
    with settings_of(base.tokenizer, None) as pad_id:
        encoder = TokenPieces(base.tokenizer, manifest.ends, source=str(base.folder))
        for number, text in enumerate(rows.texts, start=1):
            pieces = pieces_of(text, base.template, encoder.special_texts(manifest.begin))
            tokens, counts = encoder.encode(pieces)
            wanted = _targets(tokens[: task.max_length], counts[: task.max_length])
            if max(wanted, default=NOT_COUNTED) >= 0:
                ids.append(tokens[: task.max_length])
                targets.append(wanted)
            elif task.overlong == "refuse":
                raise _nothing_counts(number, tokens, counts, task.max_length)
    if not ids:
        raise DataError(
            f"no row's answer begins within {task.max_length} tokens", "raise task.max_length"
        )
    return _encoded(ids, targets, pad_id)


def _targets(tokens: Sequence[int], counts: Sequence[bool]) -> list[int]:
    """Of each token the one that follows, where that counts."""
    following = [
        token if count else NOT_COUNTED for token, count in zip(tokens, counts, strict=True)
    ]
    return [*following[1:], NOT_COUNTED] if following else []


def _nothing_counts(
    number: int, tokens: Sequence[int], counts: Sequence[bool], most: int
) -> DataError:
    if True in counts[1:]:
        begins = counts.index(True, 1)
        return DataError(
            f"row {number}: its answer begins behind {begins} tokens, the plan takes {most}",
            'raise task.max_length, shorten the row, or leave such rows out: task.overlong = "skip"',
            public="a row whose answer begins behind task.max_length",
        )
    return DataError(
        f"row {number}: of its {len(tokens)} tokens none can be learnt", "remove the row"
    )


def _encoded(ids: list[list[int]], targets: list[list[int]], pad_id: int) -> Encoded:
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    total = int(lengths.sum())
    return Encoded(
        ids=np.fromiter((token for row in ids for token in row), np.int32, total),
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        targets=np.fromiter((token for row in targets for token in row), np.int64, total),
        pad_id=pad_id,
        by_token=True,
    )


def score(outputs: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> Score:
    """Of what a program gives for each row: (rows, 3), loss, tokens, tokens that were the likeliest."""
    if not len(outputs):
        return Score(examples=0, tokens=0, right=0, loss=0.0)
    loss, tokens, right = outputs.astype(np.float64).sum(0)
    return Score(
        examples=len(outputs),
        tokens=round(float(tokens)),
        right=round(float(right)),
        loss=float(loss),
    )
