"""Where an adapter comes from: base, plan, rounds, published adapter, release. (P-8.7)

The chain is that of the log and of digests; whether its sums hold is for :mod:`audit.verify`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from audit.published import REMEDY, Run, adapter_path, read_subject
from protocol.encoding import vector_digest
from protocol.errors import ArtefactError, ProofError
from protocol.peft_format import (
    CONFIG_FILE,
    EDGE_FILE,
    RELEASE_FILE,
    WEIGHTS_FILE,
    ReleaseNote,
    from_peft,
    parse_release,
)
from protocol.peft_opener import OPENER_FILE
from protocol.tensor_file import decode_tensors
from protocol.transparency.leaf_codec import sha256
from storage.regular import read_regular


@dataclass(frozen=True, kw_only=True)
class Step:
    """A round on the way: its leaf, the adapter's digest after it, how many updates are in it."""

    round: int
    leaf: int
    adapter: str
    clients: int
    exchange: str
    void: bool


@dataclass(frozen=True, kw_only=True)
class Released:
    """The leaf of a release, its evaluation's metrics in thousandths, and its files by name."""

    leaf: int
    metrics: dict[str, int]
    files: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """From base to release; digests in hex."""

    start: dict[str, Any] | None  # of the plan: where round 0 is another run's adapter
    base: str
    base_source: str
    plan: str
    plan_name: str
    origin: str
    size: int
    steps: tuple[Step, ...]
    published: str
    files: dict[str, str]
    release: Released | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def lineage(run: Run, number: int) -> Lineage:
    """Of the adapter of round ``number``. Raises ProofError for a chain that is broken."""
    rounds = {round_.number: round_ for round_ in run.log.rounds}
    if number not in rounds:
        raise ProofError(f"the log has no round {number}", f"it has 0 to {len(rounds) - 1}")
    steps, before = [], ""
    for index in range(number + 1):
        if index not in rounds or rounds[index].adapter.leaf.adapter_in != before:
            raise ProofError(f"round {index} does not follow from the one before", REMEDY)
        placed = rounds[index].adapter
        before = placed.leaf.adapter_out
        steps.append(
            Step(
                round=index,
                leaf=placed.index,
                adapter=before,
                clients=sum(group_sum.summands for group_sum in placed.leaf.sums),
                exchange=placed.leaf.exchange,
                void=bool(placed.leaf.void),
            )
        )
    placed = rounds[number].adapter
    start = run.plan.start
    return Lineage(
        start=None if start is None else start.model_dump(mode="json"),
        base=run.manifest.fingerprint,
        base_source=run.manifest.source,
        plan=run.plan_digest,
        plan_name=run.plan.name,
        origin=run.copy.checkpoint.origin,
        size=run.copy.checkpoint.size,
        steps=tuple(steps),
        published=placed.leaf.published,
        files=placed.subjects,
        release=_released(run, number),
    )


def check_folder(run: Run, folder: Path) -> int:
    """The round whose adapter ``folder`` holds: its files are those of the log.

    Raises ArtefactError for a folder that is no adapter, ProofError for one that the log does not know.
    """
    note = _note(folder)
    placed = [round_.adapter for round_ in run.log.rounds if round_.number == note.round]
    if not placed or note.plan_digest != run.plan_digest:
        raise ProofError(f"{folder} is not of this run", "name the run it came from: --run")
    released = [release for release in run.log.releases if release.leaf.round == note.round]
    subjects = placed[0].subjects | (released[-1].subjects if released else {})
    for name in (RELEASE_FILE, WEIGHTS_FILE, CONFIG_FILE, OPENER_FILE, EDGE_FILE):
        file = folder / name
        if name in (CONFIG_FILE, OPENER_FILE, EDGE_FILE) and not file.exists():
            continue
        if sha256(_read(file)) != subjects.get(adapter_path(note.round, name)):
            raise ProofError(f"{file} is not the file that the log knows", REMEDY)
    tensors, _ = decode_tensors(_read(folder / WEIGHTS_FILE), source=str(folder / WEIGHTS_FILE))
    layout, method = run.recipe.published_layout, run.recipe.method
    if vector_digest(layout.flatten(from_peft(tensors, method=method))) != placed[0].leaf.published:
        raise ProofError(f"{folder} holds another adapter than round {note.round}'s", REMEDY)
    return note.round


def _released(run: Run, number: int) -> Released | None:
    releases = [release for release in run.log.releases if release.leaf.round == number]
    if not releases:
        return None
    newest = releases[-1]
    for name in newest.subjects:
        read_subject(run.source, newest, name)
    metrics = {evaluation.index: evaluation.leaf.metrics for evaluation in run.log.evaluations}
    evaluated = {} if newest.leaf.eval is None else metrics.get(newest.leaf.eval, {})
    return Released(leaf=newest.index, metrics=evaluated, files=newest.subjects)


def _note(folder: Path) -> ReleaseNote:
    name = folder / RELEASE_FILE
    try:
        return parse_release(_read(name).decode(), source=str(name))
    except UnicodeDecodeError:
        raise ArtefactError(f"{name} is no text", "fetch the adapter again") from None


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, most=2**30)
    except OSError as error:
        raise ArtefactError(
            f"{path} cannot be read: {error.strerror}", "name a folder rounds/NNNN/adapter"
        ) from None
