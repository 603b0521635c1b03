"""The adapter that a run goes on from: a round of another run's folder, against what the plan names. (P-4.11)

Whatever does not fit is refused before round 0 exists. What the plan says of the earlier log is for auditors:
the coordinator needs the checkpoint, and whom that run has asked for sums of this very adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from protocol.documents import OddError, json_as
from protocol.errors import ArtefactError, PlanError
from protocol.layout import FIXED_HEAD_PART, Tensors
from protocol.manifests import AnyManifest
from protocol.plan import Plan, plan_from_text
from protocol.recipe import Recipe, verify_magnitude
from protocol.start import Start
from protocol.step.checkpoint import decode_checkpoint
from protocol.step.optimizers import Moments
from protocol.step.state import State
from server.store import ADAPTER, CHECKPOINT, PLAN, RECORD, is_revealing
from storage.regular import read_regular, read_regular_text

MOST_CHECKPOINT = 2**33  # bytes
HOW = "name a round's adapter in the run's folder, like runs/x/rounds/0008/adapter"


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """Round 0 of a run that goes on from another: ``asked`` are the groups of names of its sums."""

    state: State
    asked: list[list[list[str]]]


def round_of(path: Path) -> Path:
    """The round's folder that ``path`` names: it, its adapter, or a run, whose last round is meant.

    Raises ArtefactError.
    """
    folder = path.parent if path.name == ADAPTER else path
    if (path / "rounds").is_dir():
        rounds = sorted(p for p in (path / "rounds").iterdir() if p.name.isdecimal())
        folder = max(rounds, key=lambda each: int(each.name), default=path)
    if not (folder / CHECKPOINT).is_file() or not (folder.parent.parent / PLAN).is_file():
        raise ArtefactError(f"{path} is no adapter of a run's round", HOW)
    return folder


def verify_start(path: Path | None, plan: Plan, manifest: AnyManifest) -> Beginning | None:
    """What the plan goes on from, where it does. Raises PlanError, ArtefactError."""
    if path is None:
        if plan.start is None:
            return None
        raise PlanError(
            "the plan goes on from an adapter, and nobody says where it is",
            "name the round: --start RUN/rounds/0008/adapter",
        )
    return read_beginning(path, plan, manifest)


def read_beginning(path: Path, plan: Plan, manifest: AnyManifest) -> Beginning:
    """What is at ``path``, checked against ``plan.start``.

    Raises ArtefactError for a file that is damaged or another one than the plan names, PlanError for a run
    that this plan cannot go on from.
    """
    start, folder = plan.start, round_of(path)
    if start is None:
        raise PlanError(
            f"the plan starts anew, and {path} is named to go on from",
            "write a plan that goes on: `fedge plan continue RUN`",
        )
    source = folder / CHECKPOINT
    before = _plan_before(folder, start)
    verify_same_task(before, plan)
    _verify_settings(before, start)
    try:
        data = read_regular(source, most=MOST_CHECKPOINT)
    except OSError as error:
        raise ArtefactError(f"{source} cannot be read: {error.strerror}", HOW) from None
    read, note = decode_checkpoint(data, source=str(source))
    if note.base_fingerprint != plan.base.fingerprint:
        raise PlanError(
            f"{path} was trained on base {note.base_fingerprint[:12]}…, the plan names "
            f"{plan.base.fingerprint[:12]}…",
            "an adapter fits the base that it was trained on: name that one, or start anew",
        )
    if note.adapter_digest != start.adapter or note.round != start.round:
        raise ArtefactError(
            f"{path} is adapter {note.adapter_digest[:12]}… of round {note.round}, the plan goes on from "
            f"{start.adapter[:12]}… of round {start.round}",
            "name the round that the plan was written for, or write it again: `fedge plan continue`",
        )
    recipe = Recipe(plan=plan, manifest=manifest)
    layout, vector = recipe.layout, recipe.layout.flatten(read.adapter)
    verify_directions(read.adapter, recipe)
    verify_magnitude(vector)
    asked = sums_asked(folder, start.adapter)
    state = State(adapter=layout.unflatten(vector), moments=Moments.zeros(layout.size))
    return Beginning(state=state, asked=asked)


def verify_directions(adapter: Tensors, recipe: Recipe) -> None:
    """A head of low rank moves in the plan's own directions. (P-2.7) Raises PlanError."""
    if recipe.plan.head is None or recipe.plan.head.directions is None:
        return
    drawn = recipe.start()
    for spec in recipe.layout.only({FIXED_HEAD_PART}).specs:
        if adapter[spec.name].tobytes() != drawn[spec.name].tobytes():
            raise PlanError(
                "`head.directions`: the adapter that the run goes on from moves in others",
                "write [head] as in the plan before: `fedge plan continue` does",
            )


def verify_same_task(before: Plan, plan: Plan) -> None:
    """The head's outputs mean the same. Raises PlanError."""
    then, now = before.task.meaning, plan.task.meaning
    key = next((key for key in now if then.get(key) != now[key]), "")
    if key == "labels":
        both = sorted(then[key]) == sorted(now[key])
        how = "in another order" if both else f"{then[key][:5]}… there"
        raise PlanError(
            f"`task.labels`: the run before has other labels ({how})",
            "list the same labels in the same order, or start anew",
        )
    if key:
        raise PlanError(
            f"`task.{key}`: the run before has {then[key]}, the plan {now[key]}",
            "write [task] as there, or start anew",
        )


def _verify_settings(before: Plan, start: Start) -> None:
    """Its tensors mean there what they mean here: with that the plan's own [adapter] was compared."""
    if start.settings != before.adapter_settings:
        raise PlanError(
            "`start.settings` is not the digest of [adapter] in the plan of the run before",
            "write the plan again: `fedge plan continue`",
        )


def _plan_before(folder: Path, start: Start) -> Plan:
    path = folder.parent.parent / PLAN
    try:
        before = plan_from_text(read_regular_text(path), source=str(path))
    except (OSError, UnicodeDecodeError):
        raise ArtefactError(f"{path} cannot be read", "restore the run's folder") from None
    if before.digest != start.plans[-1]:
        raise ArtefactError(
            f"{folder} is of a run of plan {before.digest[:12]}…, the plan goes on from one of "
            f"{start.plans[-1][:12]}…",
            "name the run that the plan was written for, or write it again: `fedge plan continue`",
        )
    return before


def sums_asked(folder: Path, adapter: str) -> list[list[list[str]]]:
    """Whom the run has asked for sums of this adapter, which the round in ``folder`` made or left.

    By its records. Raises PlanError while it has asked for one and has not said what became of it.
    """
    rounds, number = folder.parent, int(folder.name)
    while number > 0 and _record(rounds, number).adapter_in == adapter:
        number -= 1  # void: the model as it was
    first = _record(rounds, number)
    asked = list(first.asked_before) if number == 0 and first.adapter_out == adapter else []
    number += 1
    while (record := _record(rounds, number)).adapter_in == adapter:
        asked += [record.asked] if record.asked else []
        number += 1
    if not _folder(rounds, number).is_dir() and is_revealing(rounds, number):
        raise PlanError(
            f"the run before has asked for a sum of this adapter, in round {number}, and was stopped",
            "resume that run first, and go on from a round that it has then; or go on from an earlier one",
        )
    return asked


class _Record(BaseModel):
    """What is needed of a round's record."""

    adapter_in: str = ""
    adapter_out: str = ""
    asked: list[list[str]] = []
    asked_before: list[list[list[str]]] = []


def _record(rounds: Path, number: int) -> _Record:
    """Of a round, where it is there: a copy for auditors may lack it."""
    path = _folder(rounds, number) / RECORD
    try:
        return json_as(_Record, read_regular_text(path))
    except FileNotFoundError:
        return _Record()
    except (OSError, UnicodeDecodeError, OddError):
        raise ArtefactError(f"{path} is damaged", "restore the run's folder") from None


def _folder(rounds: Path, number: int) -> Path:
    return rounds / f"{number:04d}"
