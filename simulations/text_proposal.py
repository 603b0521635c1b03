"""``fedge init`` over rows for a base that writes text: what to learn of them, and what their length asks.

Lengths are measured with the base's own tokenizer and chat template, on the rows as a site would encode them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from base_model.verify import read_manifest
from client.batches import Encoded
from client.data import Rows
from client.opened_base import opened_base
from client.tasks import task_named
from protocol.decoder_manifest import CHAT_TEMPLATE, WritingManifest
from protocol.errors import DataError
from protocol.legality import verify_legal
from protocol.methods.targets import query_value_names
from protocol.plan import Plan, plan_from
from protocol.recipe import Recipe
from protocol.rows.read import Table
from protocol.section import MOST_TOKENS
from protocol.seq2seq_manifest import Seq2SeqManifest
from simulations.columns import column_values, owner_column, owner_columns
from simulations.experiment_text import usual_clients
from simulations.text_columns import causal_task, columns_of, seq2seq_task

NAME = "the proposed plan"  # in messages
ENOUGH = 2000  # rows of a file that are measured
WHOLE = 98  # of a hundred rows, fit into max_length
LONGEST, STEP = 1024, 16  # tokens: of max_length at most, and what it is a multiple of
MOST_BATCH, STEP_TOKENS = 16, 2048  # rows and tokens of a step
MOST_STEPS = 50  # of a client in a round
# Of AdamW, by the number of weights below: the larger a model, the smaller its steps.
RATES = ((5e8, 2e-3), (3e9, 5e-4), (float("inf"), 2e-4))


@dataclass(frozen=True, kw_only=True, slots=True)
class TextProposal:
    """What was seen in the file, and what follows from it.

    ``task`` and ``local``: keys of those tables. ``longest``: tokens of the longest row that was measured;
    ``cut``: how many of these are longer than ``max_length``; ``lost``: how many have nothing to be learnt
    within it. ``targets``: what the base calls the adapted linears; ``numbers``: of the adapter.
    """

    task: dict[str, Any]
    local: dict[str, Any]
    rows: int
    measured: int
    longest: int
    cut: int
    lost: int
    targets: list[str]
    numbers: int
    column: str  # whose a row is; empty where no column says so
    clients: int
    others: dict[str, int] = field(default_factory=dict)  # columns that could make devices: values

    def plan(self, name: str, fingerprint: str) -> dict[str, Any]:
        """A plan for real machines, as a document."""
        return {
            "name": name,
            "base": {"fingerprint": fingerprint},
            "task": self.task,
            "rule": {"name": "mean"},
            "local": self.local,
        }


def propose_texts(
    path: Path, base: Path, test: Path | None = None, *, site: bool = False
) -> TextProposal:
    """Read the whole files, and measure some of their rows; ``site``: they are one client's.

    Raises DataError for a file that the base cannot learn from, ArtefactError for a base that is damaged.
    """
    manifest = read_manifest(base)
    assert isinstance(manifest, WritingManifest)
    columns = column_values(path)
    if isinstance(manifest, Seq2SeqManifest):
        task = seq2seq_task(path, columns)
    else:
        task = causal_task(path, columns, chats=CHAT_TEMPLATE in manifest.files)
    owners = {} if site else owner_columns(columns, set(columns_of(task)))
    del columns
    column = owner_column(owners)
    reader = _Reader(base=base, manifest=manifest, task=task)
    table = reader.plan().task.rows(path, group=column)
    tables = [table, *([reader.plan().task.rows(test)] if test else [])]
    measured = _measured(reader, tables)
    strict = measured.of_all and not measured.lost and reader.all_answered(path, test)
    clients = len(set(table.groups)) if column else usual_clients(len(table))
    each = len(table) if site else len(table) // clients
    proposal = TextProposal(
        task=task | {"max_length": measured.length, "unanswered": "refuse" if strict else "skip"},
        local=steps_for(measured.tokens, each, manifest.parameters),
        rows=len(table),
        measured=measured.rows,
        longest=measured.longest,
        cut=measured.cut,
        lost=measured.lost,
        targets=query_value_names(manifest),
        numbers=Recipe(plan=reader.plan(), manifest=manifest).layout.size,
        column=column,
        clients=1 if site else clients,
        others={name: values for name, values in owners.items() if name != column},
    )
    verify_legal(plan_from(proposal.plan("proposed", manifest.fingerprint), source=NAME), manifest)
    return proposal


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reader:
    """Rows as sites read and encode them by a plan of ``task``, which leaves out what has no answer."""

    base: Path
    manifest: WritingManifest
    task: dict[str, Any]

    def plan(self, **keys: Any) -> Plan:
        """With these keys of the task; without them no text is cut."""
        task = self.task | {"unanswered": "skip", "max_length": MOST_TOKENS} | keys
        base = {"fingerprint": self.manifest.fingerprint}
        return plan_from({"name": "proposed", "base": base, "task": task}, source=NAME)

    def encoded(self, table: Table, **keys: Any) -> Encoded:
        """Raises DataError for a row that cannot be learnt whatever the plan says."""
        plan = self.plan(**keys)
        opened = opened_base(plan, self.base)
        rows = Rows(texts=table.texts, targets=table.targets, places=table.places)
        recipe = Recipe(plan=plan, manifest=opened.manifest)
        encoded = task_named(plan.task.kind).encode(rows, recipe, opened)
        assert isinstance(encoded, Encoded)  # of texts
        return encoded

    def all_answered(self, *paths: Path | None) -> bool:
        """Whether every row of the files is read by a plan that refuses one without an answer."""
        try:
            for path in filter(None, paths):
                self.plan(unanswered="refuse").task.rows(path)
        except DataError:
            return False
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    """``tokens`` of a row that is cut to ``length``, on average; ``of_all``: no row was left out."""

    rows: int
    of_all: bool
    longest: int
    length: int
    cut: int
    lost: int
    tokens: float


def _measured(reader: _Reader, tables: list[Table]) -> _Measured:
    samples = [table.take(_spread(len(table), ENOUGH)) for table in tables]
    lengths = np.concatenate([_lengths(reader.encoded(sample)) for sample in samples])
    length = length_for(lengths, reader.manifest.max_positions)
    kept = [reader.encoded(sample, max_length=length) for sample in samples]
    rows, left = (sum(map(len, each)) for each in (samples, kept))
    return _Measured(
        rows=rows,
        of_all=rows == sum(map(len, tables)),
        longest=int(lengths.max()),
        length=length,
        cut=int((lengths > length).sum()),
        lost=rows - left,
        tokens=sum(float(encoded.lengths.sum()) for encoded in kept) / left,
    )


def _spread(rows: int, most: int) -> list[int]:
    """At most so many of the rows, from the whole file."""
    return np.unique(np.linspace(0, rows - 1, min(rows, most)).astype(np.int64)).tolist()


def _lengths(rows: Encoded) -> npt.NDArray[np.int64]:
    """What max_length bounds, (rows,): tokens of the text, or of the longer of two."""
    own = np.diff(rows.offsets)
    if rows.target_offsets is None:
        return own
    return np.maximum(own, np.diff(rows.target_offsets))


def length_for(lengths: npt.NDArray[np.int64], positions: int) -> int:
    """So that :data:`WHOLE` rows of a hundred fit, or all where that is hardly more."""
    usual, longest = int(np.percentile(lengths, WHOLE, method="inverted_cdf")), int(lengths.max())
    wanted = longest if longest <= 1.25 * usual else usual
    return min(-(-wanted // STEP) * STEP, LONGEST, positions)


def steps_for(tokens: float, rows: int, parameters: int) -> dict[str, Any]:
    """Steps of a client with so many rows, of so many tokens each."""
    most = min(MOST_BATCH, STEP_TOKENS / tokens, rows / 2)
    batch = 2 ** max(0, math.floor(math.log2(max(1.0, most))))
    rate = next(rate for below, rate in RATES if parameters < below)
    bound = {"max_steps": MOST_STEPS} if rows > MOST_STEPS * batch else {}
    return {"batch_size": batch, **bound, "learning_rate": rate}
