"""The health probe: a device's own examples decide whether a release may answer. (P-9.7)

What answers them is the backend's of the base's kind; what is asked, counted and bounded is here.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from protocol.documents import OddError, json_as, value_as
from protocol.errors import ArtefactError, DataError, DeliveryError, MachineError, ProofError
from protocol.media import IMAGE, MEDIA
from protocol.rows.labels import verify_unlike
from protocol.rows.pages import BOXES, MOST_WORDS, WORDS, Page, page_of, read_pages
from protocol.rows.read import Text, any_label, checked_text, number_within, read_rows
from storage.regular import read_settings_text

if TYPE_CHECKING:
    from edge_runtime.backends import Backend

TRIES = 3
MOST_BYTES = 2**26  # of probe.json
MOST_TOKENS = 64  # of a text that is written for a row, unless the probe says otherwise
MOST_TIMED = 50  # rows of a further try
COLUMNS = tuple(
    dict.fromkeys(medium.column for medium in MEDIA.values())
)  # keys of rows that name files
Clock = Callable[[], float]
REMEDY = "what is in use stays in use; the report names the release"


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


Kind = Literal["labels", "values", "texts"]


class Turn(_Form):
    """A message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


def _path(text: str) -> str:
    """What can name a file. Raises ValueError."""
    if not text.strip() or "\0" in text:
        raise ValueError("it is empty, or holds a NUL character, and names no file")
    return text


NamedFile = Annotated[
    Annotated[str, AfterValidator(_path)] | None,
    Field(description="path of a file, from the probe's folder on"),
]


class Golden(_Form):
    """A text, pair, chat, page or file, and what it must get: a label, a number, what it ``contains``."""

    text: str | None = None
    text_pair: str | None = None
    messages: Annotated[list[Turn], Field(min_length=1, max_length=100)] | None = None
    image: NamedFile = None
    audio: NamedFile = None
    words: Annotated[list[str], Field(min_length=1, max_length=MOST_WORDS)] | None = None
    boxes: Annotated[list[list[int]], Field(min_length=1, max_length=MOST_WORDS)] | None = None
    label: str | None = None
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    contains: Annotated[str, Field(min_length=1, max_length=2000)] | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Golden:
        if [self.label, self.value, self.contains].count(None) != 2:
            raise ValueError("a row has either a label or a value, or what an answer contains")
        if [self.text, self.messages, self.image, self.audio, self.words].count(None) != 4:
            raise ValueError("a row has either a text or messages, or an image, or audio, or words")
        if (self.words is None) != (self.boxes is None):
            raise ValueError("`words` and `boxes`, where they stand, belong together")
        if self.contains is None and self.messages is not None:
            raise ValueError("only a row with `contains` has messages")
        if self.text_pair is not None and (self.kind == "texts" or self.text is None):
            raise ValueError("a row with `contains`, or a file, has no second text")
        if (self.medium or self.words) and self.kind != "labels":
            raise ValueError(f"a row with `{self.medium or WORDS}` has a label")
        if self.words is not None:
            try:
                page_of(self.words, self.boxes, place="a row")
            except DataError as error:
                raise ValueError(error.cause) from None
        return self

    @property
    def medium(self) -> str:
        """The key that names a file; empty where there is none."""
        return next((key for key in COLUMNS if getattr(self, key) is not None), "")

    @property
    def kind(self) -> Kind:
        """What it must get."""
        if self.contains is not None:
            return "texts"
        return "values" if self.label is None else "labels"

    @property
    def question(self) -> Text | Path | Page:
        """The text, the pair, the page or the file of a row that gets a label or a number."""
        if self.medium:
            return Path(getattr(self, self.medium))
        if self.words is not None:
            return page_of(self.words, self.boxes, place="a row")
        assert self.text is not None
        return self.text if self.text_pair is None else (self.text, self.text_pair)

    @property
    def answer(self) -> str | float:
        """The label, or the number."""
        return self.value if self.label is None else self.label  # type: ignore[return-value]


class File(_Form):
    """Rows in a file beside ``probe.json``, read as a site reads its own."""

    file: str
    image: str = Field(default="", description="column with paths of images, in the place of texts")
    audio: str = Field(default="", description="column with paths of sounds, in the place of texts")
    words: str = Field(default="", description="column with words of pages, in the place of texts")
    boxes: str = Field(default=BOXES, description="column with their boxes")
    text: str = "text"
    text_pair: str = Field(default="", description="column with second texts")
    label: str = "label"
    value: str = Field(default="", description="column with numbers, in the place of labels")
    contains: str = Field(default="", description="column with what written answers contain")


class Probe(_Form):
    """``probe.json``. ``least_correct`` of the rows must be right; a number may be off by ``within``.

    A text is written of the likeliest tokens, ``max_tokens`` at most. Of a base that draws a row is an image
    with its label, and right where its noise error is at most ``most_error``. Latency is the median over the
    rows, each alone, measured again when it is too long; where texts are written it is a token's, with its
    share of the prompt, where images are drawn a step's. Memory is what loading and answering add to the
    process's own, without pages of mapped files: those are the base's, and the system may drop them.
    """

    format: Literal[1] = 1
    rows: Annotated[list[Golden], Field(min_length=1, max_length=1000)]
    within: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    most_error: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    least_correct: Annotated[int, Field(ge=1)]
    most_latency_ms: Annotated[float, Field(gt=0)]
    most_memory_mb: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _passable(self) -> Probe:
        if self.least_correct > len(self.rows):
            raise ValueError("least_correct is above the number of rows: every release would fail")
        kinds = sorted({row.kind for row in self.rows})
        if len({row.medium or bool(row.words) for row in self.rows}) > 1:
            raise ValueError(
                "some rows have files or pages and some have texts, or files of another medium"
            )
        if len({row.text_pair is None for row in self.rows}) > 1:
            raise ValueError("some rows are pairs and some are not")
        if len(kinds) > 1:
            raise ValueError(f"some rows have {kinds[0]} and some have {kinds[1]}")
        if (self.kind == "values") != (self.within is not None):
            raise ValueError("values and `within`, how far off they may be, belong together")
        if self.max_tokens is not None and self.kind != "texts":
            raise ValueError("`max_tokens` is of texts that are written")
        if self.most_error is not None and self.rows[0].medium != IMAGE.column:
            raise ValueError("`most_error` is of images with labels, which a base draws")
        return self

    @property
    def kind(self) -> Kind:
        """What its rows must get."""
        return self.rows[0].kind

    @property
    def pairs(self) -> bool:
        """Whether its rows have second texts."""
        return self.rows[0].text_pair is not None


class _Written(_Form):
    """``probe.json`` as it is written: ``rows`` may be a file's."""

    format: Literal[1] = 1
    rows: list[Golden] | File
    within: float | None = None
    max_tokens: int | None = None
    most_error: float | None = None
    least_correct: int
    most_latency_ms: float
    most_memory_mb: float


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What a backend saw of a release: by number what is said of each wrong row, and the latency."""

    wrong: Mapping[int, str]
    latency_ms: float


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
        return [_beside(row.model_dump(), folder) for row in rows]
    path = folder / rows.file
    if rows.value and rows.contains:
        raise OddError("`value` and `contains` of a file are not for the same probe")
    named = [key for key in (*COLUMNS, WORDS) if getattr(rows, key)]
    texts = bool(rows.text_pair) or "text" in rows.model_fields_set
    if len(named) + texts > 1:
        raise OddError(
            "a file has a column of images, of sounds, of words or of texts: name one, leave the others out"
        )
    if rows.value:
        check, column, key = number_within(-math.inf, math.inf), rows.value, "value"
    elif rows.contains:
        check, column, key = checked_text, rows.contains, "contains"
    else:
        check, column, key = any_label, rows.label, "label"
    if rows.words:
        columns = (rows.words, rows.boxes)
        table = read_pages(path, columns=columns, target=column, check=check)
    elif named:
        from protocol.rows.media import read_media_rows

        files = getattr(rows, named[0])
        table = read_media_rows(path, column=files, target=column, check=check)
    else:
        table = read_rows(path, text=rows.text, pair=rows.text_pair, target=column, check=check)
    if key == "label":
        verify_unlike(table.targets, str(path))
    return [
        _asked(text, *named) | {key: target}
        for text, target in zip(table.texts, table.targets, strict=True)
    ]


def _beside(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A row whose file lies where its path says from ``folder`` on."""
    return row | {key: str(folder / row[key]) for key in COLUMNS if row[key] is not None}


def _asked(text: Text | Path | Page, key: str = "") -> dict[str, Any]:
    """What is asked in a row; ``key`` is that of a file."""
    if isinstance(text, Page):
        return {WORDS: list(text.words), BOXES: [list(box) for box in text.boxes]}
    if isinstance(text, Path):
        return {key: str(text)}
    return {"text": text} if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}


def check_health(
    folder: Path,
    backend: Backend[Any],
    probe: Probe,
    clock: Clock = time.perf_counter,
    *,
    questions: Sequence[Any] | None = None,
) -> Health:
    """Load a release beside whatever is in use and try it. ``clock`` gives seconds.

    ``questions``: the probe's as the backend has read them, read here where they are not given. Raises
    DeliveryError `probe.load`, `probe.labels`, `probe.latency`, `probe.memory` for what is the release's
    fault; of the device's own, MachineError, and DataError or ArtefactError as the backend reads questions.
    """
    asked = backend.questions(probe) if questions is None else questions
    before = own_bytes()
    try:
        adapter = backend.load(folder)
        examined = backend.examine(adapter, probe, asked, clock)
    except (DeliveryError, MachineError):
        raise
    except (ArtefactError, ProofError) as error:
        raise DeliveryError("probe.load", error.cause, REMEDY) from None
    except Exception as error:  # ORT's own; unnamed, the release would be tried again for ever
        raise DeliveryError("probe.load", repr(error)[:200], REMEDY) from None
    health = Health(
        correct=len(probe.rows) - len(examined.wrong),
        rows=len(probe.rows),
        latency_ms=examined.latency_ms,
        memory_mb=max(0, own_bytes() - before) / 1e6,
    )
    _judge(health, probe, examined.wrong, backend.ITEM)
    return health


def unreadable(cause: str) -> DataError:
    """Of a probe that the device's base cannot be asked, whatever the release."""
    return DataError(
        f"the device's own probe: {cause}",
        "mend probe.json, or what it names; no release is marked as failed",
        public="the device's own probe has rows that its base cannot be asked",
    )


def refuse_kind(answers: Kind, probe: Probe) -> None:
    """Raises DeliveryError where a release's ``answers`` are not of the probe's kind."""
    if answers != probe.kind:
        raise DeliveryError(
            "probe.labels",
            f"the release answers with {answers}, the probe has {probe.kind}",
            REMEDY,
        )


def least_median_ms(passes: Iterator[Sequence[float]], most: float) -> float:
    """The least of up to three medians: a moment in which the device was busy fails no release for good.

    ``passes`` gives the seconds of rows, at each try; no more are taken once ``most`` ms are not exceeded.
    """
    least = math.inf
    for seconds in islice(passes, TRIES):
        least = min(least, 1000 * statistics.median(seconds))
        if least <= most:
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


def _judge(health: Health, probe: Probe, wrong: Mapping[int, str], item: str) -> None:
    if health.correct < probe.least_correct:
        # Of a row by its number: what a report tells of a device holds none of its texts.
        first = min(wrong)
        raise DeliveryError(
            "probe.labels",
            f"{health.correct} of {health.rows} {probe.kind} are right, {probe.least_correct} must be; "
            f"the first wrong one is row {first + 1}: {wrong[first]}",
            REMEDY,
        )
    if health.latency_ms > probe.most_latency_ms:
        raise DeliveryError(
            "probe.latency",
            f"{health.latency_ms:.0f} ms a {item}, {probe.most_latency_ms:.0f} ms are allowed",
            REMEDY,
        )
    if health.memory_mb > probe.most_memory_mb:
        raise DeliveryError(
            "probe.memory",
            f"{health.memory_mb:.0f} MB more, {probe.most_memory_mb:.0f} MB are allowed",
            REMEDY,
        )
