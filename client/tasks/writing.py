"""What tasks share whose answers are texts: targets are tokens, and what a model makes of those."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from client.batches import Encoded
from client.data import Rows
from protocol.errors import ArtefactError, DataError
from protocol.rows.read import Table
from protocol.tasks.writing import WritingTask

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


def targets(table: Table, task: WritingTask) -> list[str]:
    """The reference answers."""
    return list(table.targets)


OF_THE_BASE = "the base's chat template or tokenizer fails on the local data"


@contextmanager
def standing(rows: Rows, row: int) -> Iterator[None]:
    """What is raised about row ``row`` says where that stands, on this machine alone.

    Also what is the base's fault: its template or tokenizer fails on this row, and which row it is, or with
    what words, may be what the row says.
    """
    try:
        yield
    except DataError as error:
        cause = f"{rows.place(row)}: {error.cause}"
        raise DataError(cause, error.remedy, public=error.public) from None
    except ArtefactError as error:
        cause = f"{rows.place(row)}: {error.cause}"
        raise DataError(cause, error.remedy, public=OF_THE_BASE) from None


def encoded_texts(
    ids: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    pad_id: int,
    *,
    apart: bool = False,
) -> Encoded:
    """Rows of ``ids`` and their targets; ``apart``: these are of a text of their own, of other lengths."""
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    total = int(lengths.sum())
    sizes = np.fromiter(map(len, targets), np.int64, len(targets))
    return Encoded(
        ids=np.fromiter((token for row in ids for token in row), np.int32, total),
        offsets=_offsets(lengths),
        targets=np.fromiter(
            (token for row in targets for token in row), np.int64, int(sizes.sum())
        ),
        pad_id=pad_id,
        by_token=True,
        target_offsets=_offsets(sizes) if apart else None,
    )


def _offsets(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)


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
