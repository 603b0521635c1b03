"""A run's metrics, one event a line: what curves, tables and trackers are made of. (docs/adr/0039)

``metrics.jsonl`` lies beside the rounds. Everything in it follows from their records or was measured on the
operator's own rows: sums and counts, no client's name and no client's own value. It only grows; of two lines
about the same the later one counts, and a line that a crash has torn is no line.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from protocol.documents import OddError, json_as
from protocol.errors import ArtefactError
from protocol.plan import Plan
from storage.regular import open_regular, read_regular
from storage.whole import appending, write_whole

HISTORY, MOST_BYTES = "metrics.jsonl", 2**30
OF_ROUND = (  # of a record, as they are
    "attempt",
    "update_norm",
    "seconds",
    "bytes_up_per_client",
    "bytes_down_per_client",
    "failures",
    "clipped_share",
)
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Real = Annotated[float, Field(allow_inf_nan=False)]


class Event(BaseModel):
    """What is known of a round from one place.

    ``round``: of the coordinator's record. ``clients``: what all of them summed up, of their own rows; none
    under differential privacy. ``evaluation``: of rows that the operator has. ``turn`` is the round counted
    over the runs before as well, ``time`` when the line was written, in seconds since 1970.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    event: Literal["round", "clients", "evaluation"]
    round: Annotated[int, Field(ge=0)]
    turn: Annotated[int, Field(ge=0)]
    time: Real
    values: dict[Name, Real]


def events_of(record: Mapping[str, Any], plan: Plan, *, now: float) -> Iterator[Event]:
    """Those of a round's record."""
    number = int(record["round"])
    common: dict[str, Any] = {"round": number, "turn": plan.turn(number), "time": now}
    values = {name: record.get(name) for name in OF_ROUND} | {
        "used": len(record["used"]),
        "dropped": len(record["dropped"]),
        "kept_out": len(record["kept_out"]),
        "void": record["void"] is not None,
        "epsilon": (record["privacy"] or {}).get("epsilon"),
    }
    metrics = record["metrics"]
    if metrics.get("examples"):
        yield Event(event="clients", values=_finite(_means(metrics, plan)), **common)
    # The last line: where it is, those before it are.
    yield Event(event="round", values=_finite(values), **common)


def evaluation_event(plan: Plan, number: int, values: Mapping[str, Any], *, now: float) -> Event:
    """What was measured of a round's adapter; of ``values`` those that are one number."""
    return Event(
        event="evaluation",
        round=number,
        turn=plan.turn(number),
        time=now,
        values=_finite(values),
    )


def _means(metrics: Mapping[str, float], plan: Plan) -> dict[str, float | None]:
    """Over all rows that were trained on, and all that were kept out."""
    examples, kept_out = metrics["examples"], metrics.get("eval_examples", 0.0)
    return {
        "examples": examples,
        "train_loss": metrics["loss_sum"] / examples,
        "train_seconds": metrics.get("train_seconds"),
        "holdout_examples": kept_out,
        f"holdout_{plan.task.QUALITY.name}": plan.task.quality_of(metrics),
    }


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {
        name: float(value) for name, value in values.items() if isinstance(value, int | float)
    }
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def append_events(run: Path, events: Iterator[Event]) -> None:
    """Add lines, behind the last one that is whole; on disk when this returns."""
    path = run / HISTORY
    if not _ends_whole(path):
        write_whole(path, b"".join(line + b"\n" for line in _lines(path)))
    text = "".join(event.model_dump_json() + "\n" for event in events)
    with appending(path) as append:
        append(text.encode())


def read_history(run: Path) -> list[Event]:
    """The events of a run in the order of rounds; none where there is no such file.

    Raises ArtefactError that names a line which is no event.
    """
    path, events = run / HISTORY, dict[tuple[int, str], Event]()
    for number, line in enumerate(_lines(path), start=1):
        try:
            event = json_as(Event, line)
        except OddError as odd:
            raise ArtefactError(
                f"{path}: line {number} is no event: {odd}",
                "remove the file and resume the run: it is written again from the rounds' records",
            ) from None
        events[event.round, event.event] = event
    return [events[key] for key in sorted(events)]


def catch_up(run: Path, records: Iterator[Mapping[str, Any]], plan: Plan, *, now: float) -> None:
    """Make up for rounds that were published by a process that was killed before it wrote of them."""
    known = {event.round for event in read_history(run) if event.event == "round"}
    missing = (record for record in records if record["round"] not in known)
    append_events(run, (event for record in missing for event in events_of(record, plan, now=now)))


def _ends_whole(path: Path) -> bool:
    """Whether no crash has torn the last line; nothing else is read, for the file grows with every round."""
    try:
        with open_regular(path, most=MOST_BYTES) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return file.read(1) in (b"", b"\n")
    except FileNotFoundError:
        return True
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}", "restore it") from None


def _lines(path: Path) -> list[bytes]:
    """Those that end."""
    try:
        data = read_regular(path, most=MOST_BYTES)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}", "restore it") from None
    return data.split(b"\n")[:-1]
