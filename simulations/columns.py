"""The columns of a file of rows: their values, and what their names say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from protocol.errors import DataError
from protocol.manifest import DOCUMENTS
from protocol.media import MEDIA
from protocol.rows.formats import read_columns, read_values, shown

TEXTS = (
    *("text", "sentence", "utterance", "message", "content", "query", "question", "review"),
    "body",
)
OWNERS = (
    *("client", "device", "site", "user", "author", "speaker", "writer", "customer", "household"),
    *("room", "ward", "hospital", "store", "shop", "branch", "team", "school", "city", "account"),
)
LEAST: Final = 3  # devices
# Names of columns with words of pages, and with their boxes.
WORDS, BOXES = ("words", "tokens"), ("boxes", "bboxes", "bbox", "bounding_boxes")
Columns = dict[str, list[object]]


def read_columns_of(kind: str) -> tuple[str, ...]:
    """Keys of ``[task]`` for what rows of a kind are read by, beside the label."""
    if kind == DOCUMENTS:
        return "words", "boxes"
    return (MEDIA[kind].column,) if kind in MEDIA else ("text",)


def column_values(path: Path) -> Columns:
    """The values of every column that all rows have. Raises DataError for a file that is damaged."""
    names = read_columns(path)
    try:
        rows = [values for _, values in read_values(path, names)]
        return {name: [row[at] for row in rows] for at, name in enumerate(names)}
    except DataError as error:
        columns = {}
        for name in names:  # JSON objects need not all have the same keys
            try:
                columns[name] = [values[0] for _, values in read_values(path, [name])]
            except DataError:
                continue
        if not columns:
            raise error from None
        return columns


def owner_columns(columns: Columns, taken: set[str]) -> dict[str, int]:
    """Columns whose values could be devices, with their number."""
    counts = {}
    for name, values in columns.items():
        if name in taken or not all(type(v) in (int, str) and str(v).strip() for v in values):
            continue
        count = len(set(map(str, values)))
        if LEAST <= count <= len(values) // 2:
            counts[name] = count
    return counts


def owner_column(counts: dict[str, int]) -> str:
    """The one of :func:`owner_columns` that is named like an owner, with the most values; or none."""
    named = sorted((name for name in counts if is_named(name, OWNERS)), key=lambda n: -counts[n])
    return named[0] if named else ""


def all_text(values: Iterable[object]) -> bool:
    """Whether all are texts with something in them."""
    return all(type(value) is str and bool(value.strip()) for value in values)


def all_lists(values: Iterable[object]) -> bool:
    """Whether all are lists with something in them."""
    return all(isinstance(value, list) and bool(value) for value in values)


def first_named(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """The column with the first of ``names`` that there is, whatever its case."""
    by_name = {name.casefold(): name for name in reversed(list(columns))}
    return next((by_name[name] for name in names if name in by_name), None)


def is_named(column: str, names: Sequence[str]) -> bool:
    """Whether one of ``names``, or its plural, is a word of a column's name."""
    words = set(re.split(r"[\W_]+", column.casefold()))
    return bool(words & {form for name in names for form in (name, f"{name}s")})


def listed(columns: Columns) -> str:
    """All columns, for a message."""
    counts = {name: len(set(map(str, values))) for name, values in columns.items()}
    each = ", ".join(f"{shown(name)} ({count} values)" for name, count in counts.items())
    return f"columns in every row: {each or 'none'}; texts and labels are strings"
