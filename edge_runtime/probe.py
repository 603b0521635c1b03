"""The health probe: a device's own examples decide whether a release may answer. (P-9.7)"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge_runtime.answer_options import verify_texts
from edge_runtime.base import EdgeBase
from edge_runtime.runtime import EdgeRuntime
from edge_runtime.tasks import task_named
from protocol.documents import OddError, json_as, value_as
from protocol.errors import ArtefactError, DataError, DeliveryError, ProofError, shortened
from protocol.rows.labels import verify_unlike
from protocol.rows.read import Text, any_label, number_within, read_rows
from storage.regular import read_settings_text

TRIES = 3
MOST_BYTES = 2**26  # of probe.json
Clock = Callable[[], float]
REMEDY = "what is in use stays in use; the report names the release"


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class Golden(_Form):
    """A text (or a pair) and what it must get: a label, or a number."""

    text: str
    text_pair: str | None = None
    label: str | None = None
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Golden:
        if (self.label is None) == (self.value is None):
            raise ValueError("a row has either a label or a value")
        return self

    @property
    def question(self) -> Text:
        """The text, or the pair."""
        return self.text if self.text_pair is None else (self.text, self.text_pair)

    @property
    def answer(self) -> str | float:
        """What it must get."""
        return self.value if self.label is None else self.label  # type: ignore[return-value]


class File(_Form):
    """Rows in a file beside ``probe.json``, read as a site reads its own."""

    file: str
    text: str = "text"
    text_pair: str = Field(default="", description="column with second texts")
    label: str = "label"
    value: str = Field(default="", description="column with numbers, in the place of labels")


class Probe(_Form):
    """``probe.json``. ``least_correct`` of the rows must be right; a number may be off by ``within``.

    Latency is the median over the rows, each alone, measured again when it is too long; memory is what
    loading and answering add to the process's own, without pages of mapped files: those are the base's,
    and the system may drop them.
    """

    format: Literal[1] = 1
    rows: Annotated[list[Golden], Field(min_length=1, max_length=1000)]
    within: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=False)] | None = None
    least_correct: Annotated[int, Field(ge=1)]
    most_latency_ms: Annotated[float, Field(gt=0, strict=False)]
    most_memory_mb: Annotated[float, Field(gt=0, strict=False)]

    @model_validator(mode="after")
    def _passable(self) -> Probe:
        if self.least_correct > len(self.rows):
            raise ValueError("least_correct is above the number of rows: every release would fail")
        kinds = {row.label is None for row in self.rows}
        if len({row.text_pair is None for row in self.rows}) > 1:
            raise ValueError("some rows are pairs and some are not")
        if len(kinds) > 1:
            raise ValueError("some rows have labels and some have values")
        if kinds != {self.within is not None}:
            raise ValueError("values and `within`, how far off they may be, belong together")
        return self


class _Written(_Form):
    """``probe.json`` as it is written: ``rows`` may be a file's."""

    format: Literal[1] = 1
    rows: list[Golden] | File
    within: Annotated[float, Field(strict=False)] | None = None
    least_correct: int
    most_latency_ms: Annotated[float, Field(strict=False)]
    most_memory_mb: Annotated[float, Field(strict=False)]


class Health(_Form):
    """What a release showed."""

    correct: int
    rows: int
    latency_ms: float
    memory_mb: float


def read_probe(path: Path) -> Probe:
    """Read ``probe.json``. Raises ArtefactError, and DataError for a file of rows that it names."""
    try:
        written = json_as(_Written, read_settings_text(path, most=MOST_BYTES), most=MOST_BYTES)
        fields = written.model_dump(exclude={"rows"})
        return value_as(Probe, fields | {"rows": _golden(written.rows, path.parent)})
    except (OSError, UnicodeDecodeError, OddError) as error:
        raise ArtefactError(
            f"{path}: not a probe: {error}", "docs/guide.md shows a probe.json"
        ) from None


def _golden(rows: list[Golden] | File, folder: Path) -> list[dict[str, Any]]:
    if not isinstance(rows, File):
        return [row.model_dump() for row in rows]
    path = folder / rows.file
    if rows.value:
        check, column, key = number_within(-math.inf, math.inf), rows.value, "value"
    else:
        check, column, key = any_label, rows.label, "label"
    table = read_rows(path, text=rows.text, pair=rows.text_pair, target=column, check=check)
    if not rows.value:
        verify_unlike(table.targets, str(path))
    return [
        _texts_of(text) | {key: target}
        for text, target in zip(table.texts, table.targets, strict=True)
    ]


def _texts_of(text: Text) -> dict[str, Any]:
    return {"text": text} if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}


def check_health(
    folder: Path, base: EdgeBase, probe: Probe, clock: Clock = time.perf_counter
) -> Health:
    """Load a release beside whatever is in use and try it. ``clock`` gives seconds.

    Raises DeliveryError `probe.load`, `probe.labels`, `probe.latency`, `probe.memory`.
    """
    before = own_bytes()
    runtime = EdgeRuntime(base)
    try:
        runtime.activate(folder, [row.question for row in probe.rows])
    except (ArtefactError, ProofError) as error:
        raise DeliveryError("probe.load", error.cause, REMEDY) from None
    except Exception as error:  # ORT's own; unnamed, the release would be tried again for ever
        raise DeliveryError("probe.load", repr(error)[:200], REMEDY) from None
    answers = runtime.infer([row.question for row in probe.rows])
    wrong = _wrong(runtime, probe, answers)
    health = Health(
        correct=len(probe.rows) - len(wrong),
        rows=len(probe.rows),
        latency_ms=_latency_ms(runtime, probe, clock),
        memory_mb=max(0, own_bytes() - before) / 1e6,
    )
    _judge(
        health, probe, [_missed(at, probe.rows[at].answer, answers[at].answer) for at in wrong[:1]]
    )
    return health


def _wrong(runtime: EdgeRuntime, probe: Probe, answers: Sequence[Any]) -> list[int]:
    """Which rows are answered otherwise. Raises DeliveryError where they have what the release has not."""
    active = runtime.active
    assert active is not None
    task = task_named(active.note.task)
    try:
        verify_texts([row.question for row in probe.rows], pairs=active.note.pairs)
    except DataError as error:
        raise DeliveryError("probe.labels", error.cause, REMEDY) from None
    if (probe.within is not None) == task.HAS_LABELS:
        kinds = ("labels", "values") if task.HAS_LABELS else ("values", "labels")
        raise DeliveryError(
            "probe.labels", f"the release answers with {kinds[0]}, the probe has {kinds[1]}", REMEDY
        )
    return [
        at
        for at, (row, answer) in enumerate(zip(probe.rows, answers, strict=True))
        if not task.is_right(answer, row.answer, probe.within or 0.0)
    ]


def _latency_ms(runtime: EdgeRuntime, probe: Probe, clock: Clock) -> float:
    """The least of up to three medians: a moment in which the device was busy fails no release for good."""
    least = math.inf
    for _ in range(TRIES):
        seconds = []
        for row in probe.rows[:50]:
            start = clock()
            runtime.infer([row.question])
            seconds.append(clock() - start)
        least = min(least, 1000 * statistics.median(seconds))
        if least <= probe.most_latency_ms:
            break
    return least


def own_bytes() -> int:
    """Resident memory that is of no file; 0 where there is no /proc."""
    try:
        for line in Path("/proc/self/status").read_text("utf-8", "replace").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _missed(at: int, golden: str | float, answer: str | float) -> str:
    """Of a row by its number: what a report tells of a device holds none of its texts."""
    got, meant = (shortened(str(value), 60) for value in (answer, golden))
    return f"; the first wrong one is row {at + 1}: {got!r} for {meant!r}"


def _kind(probe: Probe) -> str:
    return "labels" if probe.within is None else "values"


def _judge(health: Health, probe: Probe, missed: list[str]) -> None:
    if health.correct < probe.least_correct:
        raise DeliveryError(
            "probe.labels",
            f"{health.correct} of {health.rows} {_kind(probe)} are right, {probe.least_correct} must be"
            + "".join(missed),
            REMEDY,
        )
    if health.latency_ms > probe.most_latency_ms:
        raise DeliveryError(
            "probe.latency",
            f"{health.latency_ms:.0f} ms a text, {probe.most_latency_ms:.0f} ms are allowed",
            REMEDY,
        )
    if health.memory_mb > probe.most_memory_mb:
        raise DeliveryError(
            "probe.memory",
            f"{health.memory_mb:.0f} MB more, {probe.most_memory_mb:.0f} MB are allowed",
            REMEDY,
        )
