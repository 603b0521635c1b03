"""The health probe: a device's own examples decide whether a release may answer. (P-9.7)"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge_runtime.base import EdgeBase
from edge_runtime.runtime import EdgeRuntime
from protocol.documents import OddError, json_as, value_as
from protocol.errors import ArtefactError, DeliveryError, ProofError
from protocol.regular_files import read_settings_text
from protocol.rows.labels import verify_unlike
from protocol.rows.read import any_label, read_rows

TRIES = 3
MOST_BYTES = 2**26  # of probe.json
Clock = Callable[[], float]
REMEDY = "what is in use stays in use; the report names the release"


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class Golden(_Form):
    """A text and the label it must get."""

    text: str
    label: str


class File(_Form):
    """Rows in a file beside ``probe.json``, read as a site reads its own."""

    file: str
    text: str = "text"
    label: str = "label"


class Probe(_Form):
    """``probe.json``. ``least_correct`` of the rows must be right.

    Latency is the median over the rows, each alone, measured again when it is too long; memory is what
    loading and answering add to the process's own, without pages of mapped files: those are the base's,
    and the system may drop them.
    """

    format: Literal[1] = 1
    rows: Annotated[list[Golden], Field(min_length=1, max_length=1000)]
    least_correct: Annotated[int, Field(ge=1)]
    most_latency_ms: Annotated[float, Field(gt=0, strict=False)]
    most_memory_mb: Annotated[float, Field(gt=0, strict=False)]

    @model_validator(mode="after")
    def _passable(self) -> Probe:
        if self.least_correct > len(self.rows):
            raise ValueError("least_correct is above the number of rows: every release would fail")
        return self


class _Written(_Form):
    """``probe.json`` as it is written: ``rows`` may be a file's."""

    format: Literal[1] = 1
    rows: list[Golden] | File
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


def _golden(rows: list[Golden] | File, folder: Path) -> list[dict[str, str]]:
    if not isinstance(rows, File):
        return [row.model_dump() for row in rows]
    path = folder / rows.file
    table = read_rows(path, text=rows.text, target=rows.label, check=any_label)
    verify_unlike(table.targets, str(path))
    return [
        {"text": text, "label": label}
        for text, label in zip(table.texts, table.targets, strict=True)
    ]


def check_health(
    folder: Path, base: EdgeBase, probe: Probe, clock: Clock = time.perf_counter
) -> Health:
    """Load a release beside whatever is in use and try it. ``clock`` gives seconds.

    Raises DeliveryError `probe.load`, `probe.labels`, `probe.latency`, `probe.memory`.
    """
    before = own_bytes()
    runtime = EdgeRuntime(base)
    try:
        runtime.activate(folder, [row.text for row in probe.rows])
    except (ArtefactError, ProofError) as error:
        raise DeliveryError("probe.load", error.cause, REMEDY) from None
    except Exception as error:  # ORT's own; unnamed, the release would be tried again for ever
        raise DeliveryError("probe.load", repr(error)[:200], REMEDY) from None
    found = [answer.label for answer in runtime.infer([row.text for row in probe.rows])]
    wrong = [at for at, row in enumerate(probe.rows) if found[at] != row.label]
    health = Health(
        correct=len(probe.rows) - len(wrong),
        rows=len(probe.rows),
        latency_ms=_latency_ms(runtime, probe, clock),
        memory_mb=max(0, own_bytes() - before) / 1e6,
    )
    _judge(health, probe, [_missed(at, probe.rows[at].label, found[at]) for at in wrong[:1]])
    return health


def _latency_ms(runtime: EdgeRuntime, probe: Probe, clock: Clock) -> float:
    """The least of up to three medians: a moment in which the device was busy fails no release for good."""
    least = math.inf
    for _ in range(TRIES):
        seconds = []
        for row in probe.rows[:50]:
            start = clock()
            runtime.infer([row.text])
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


def _missed(at: int, wanted: str, found: str) -> str:
    """Of a row by its number: what a report tells of a device holds none of its texts."""
    return f"; the first wrong one is row {at + 1}: {found[:60]!r} for {wanted[:60]!r}"


def _judge(health: Health, probe: Probe, missed: list[str]) -> None:
    if health.correct < probe.least_correct:
        raise DeliveryError(
            "probe.labels",
            f"{health.correct} of {health.rows} labels are right, {probe.least_correct} must be"
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
