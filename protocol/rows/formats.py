"""JSONL, CSV and Parquet as raw values of the columns asked for, each with the line or row it stands in.

What stands beside these columns is neither decoded further than its form needs nor judged. Nothing is
memory-mapped and no copy is left anywhere. Types are never guessed: a CSV label ``01`` stays the text ``01``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from protocol.documents import MOST_DIGITS, OddError, parse_json
from protocol.errors import DataError, MachineError, shortened
from protocol.misspelling import nearest
from storage.regular import read_regular

MOST_BYTES = 2**31 - 1  # of a file of rows; it is read whole
LONGEST_SHOWN = 40  # characters; a longer "label" may be a text in the wrong column
MOST_NAMED = 20  # columns in a message
SLICE = 256  # rows of Parquet that are Python objects at once
MARK = "\ufeff"

Values = tuple[object, ...]  # of the columns asked for, in their order
Numbered = tuple[int, Values]
Reader = Callable[[Path, bytes, Sequence[str]], Iterator[Numbered]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a value stands: ``unit`` is "line" or "row", counted from 1."""

    path: Path
    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.path}: {self.unit} {self.number}"


class JsonObject(list[tuple[str, object]]):
    """The pairs of a JSON object, repeated keys among them."""


def read_values(path: Path, columns: Sequence[str]) -> Iterator[tuple[Place, Values]]:
    """The values of ``columns`` row by row, at least one row.

    Raises DataError for another format, a file that cannot be read, and the first row that is damaged or
    lacks a column; MachineError for Parquet where there is no pyarrow.
    """
    kind = path.suffix.lower()
    readers: dict[str, tuple[Reader, str]] = {
        ".jsonl": (_jsonl, "line"),
        ".csv": (_csv, "line"),
        ".parquet": (_parquet, "row"),
    }
    if kind not in readers:
        raise DataError(
            f"{path}: files of type {kind or '(none)'} are not read",
            "use .jsonl, .csv or .parquet",
        )
    reader, unit = readers[kind]
    rows = 0
    for number, values in reader(path, _bytes(path), columns):
        rows += 1
        yield Place(path=path, unit=unit, number=number), values
    if not rows:
        raise DataError(f"{path}: there are no rows", "name a file with data", public="no rows")


def read_lines(path: Path) -> Iterator[tuple[Place, str]]:
    """The lines of a plain text that are not blank; they end where those of JSONL do. Raises DataError."""
    for number, line in _lines(_decoded(path, _bytes(path))):
        yield Place(path=path, unit="line", number=number), line.removesuffix("\r")


def read_columns(path: Path, *, most: int = 1000) -> list[str]:
    """The names of the columns: of the header, or of the first ``most`` JSON objects. Raises DataError."""
    kind, data = path.suffix.lower(), _bytes(path)
    if kind == ".csv":
        header = next((fields for _, fields in _records(path, _decoded(path, data)) if fields), [])
        return list(dict.fromkeys(header))
    if kind == ".parquet":
        return list(dict.fromkeys(_opened(path, data).schema_arrow.names))
    names: dict[str, None] = {}
    for place, line in islice(_lines(_decoded(path, data)), most):
        names |= dict.fromkeys(name for name, _ in _object(path, place, line, ()))
    return list(names)


def shown(value: str) -> str:
    """A name or label for a message; of a long one only its length, because it may be a text."""
    if len(value) > LONGEST_SHOWN:
        return f"(of {len(value)} characters)"
    return repr(value)


# -- text -------------------------------------------------------------------------------------------


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file", "check the path")
    try:
        return read_regular(path, most=MOST_BYTES)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror or type(error).__name__}",
            "check the path and its permissions",
        ) from None


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8").removeprefix(MARK)  # a byte-order mark is no data
    except UnicodeDecodeError as error:
        before = data[: error.start].replace(b"\r\n", b"\n")
        ends = b"\n" if path.suffix.lower() != ".csv" or b"\n" in before else b"\r"
        line = before.count(ends) + 1
        raise DataError(f"{path}: line {line}: not valid UTF-8", "save the file as UTF-8") from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # Only \n ends a line: str.splitlines would also cut at U+2028 inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line and not line.isspace():
            yield number, line


# -- JSONL ------------------------------------------------------------------------------------------


def _jsonl(path: Path, data: bytes, columns: Sequence[str]) -> Iterator[Numbered]:
    for number, line in _lines(_decoded(path, data)):
        row = _object(path, number, line, columns)
        table = dict(row)
        if len(table) != len(row):
            _verify_once([name for name, _ in row], columns, f"{path}: line {number}", "key")
        yield number, tuple(table[name] for name in columns)


def _object(path: Path, number: int, line: str, columns: Sequence[str]) -> JsonObject:
    """The object of one line. Raises DataError, also where a column is missing."""
    place = f"{path}: line {number}"
    try:
        row = json.loads(line, object_pairs_hook=JsonObject, parse_int=_whole)
    except json.JSONDecodeError as error:
        if line.startswith(MARK):
            raise DataError(
                f"{place}: a byte-order mark in the middle of the file",
                "the files that were joined here: remove it from this line",
            ) from None
        raise DataError(
            f"{place}: not valid JSON: {error.msg} at column {error.colno}",
            "write one JSON object per line",
        ) from None
    except RecursionError:
        raise DataError(
            f"{place}: not valid JSON: nested too deep", "write one flat JSON object per line"
        ) from None
    if not isinstance(row, JsonObject):
        wanted = ", ".join(f'"{name}": …' for name in columns)
        raise DataError(f"{place}: a {type_name(row)}, not a JSON object", f"write {{{wanted}}}")
    _verify_there([name for name, _ in row], columns, place)
    return row


def _whole(text: str) -> int | float:
    """A whole number; beyond what anybody counts, only that it is a number."""
    return int(text) if len(text) <= MOST_DIGITS else float("inf")


# -- CSV --------------------------------------------------------------------------------------------


def _csv(path: Path, data: bytes, columns: Sequence[str]) -> Iterator[Numbered]:
    header: list[str] = []
    places: list[int] = []
    for number, fields in _records(path, _decoded(path, data)):
        if not fields:
            continue
        if not header:
            header, place = fields, f"{path}: line {number}"
            _verify_there(header, columns, place)
            _verify_once(header, columns, place, "column")
            places = [header.index(name) for name in columns]
        elif len(fields) != len(header):
            raise DataError(
                f"{path}: line {number}: {len(fields)} fields, the header has {len(header)}",
                "quote fields that hold commas",
            )
        else:
            yield number, tuple(fields[at] for at in places)


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Fields by the line in which a record begins; a quoted field may run over several lines."""
    # The limit is the process's own and far below what a text may be; it only ever rises here.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for fields in reader:
            yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise _stray_quote(path, line, reader.line_num, str(error)) from None


def _stray_quote(path: Path, begins: int, stops: int, fault: str) -> DataError:
    """What is wrong with a record: the quote that opens it is where people have to look."""
    remedy = 'write "" for a quote inside a quoted field, and put the whole field in quotes'
    if "unexpected end of data" in fault:
        return DataError(
            f"{path}: line {begins}: not valid CSV: a quote opens in this row and is never closed",
            remedy,
        )
    if "expected after" in fault:
        where = "here" if stops == begins else f"at line {stops}"
        return DataError(
            f"{path}: line {begins}: not valid CSV: a quote opens in this row and closes {where} "
            "in the middle of a field",
            remedy,
        )
    return DataError(f"{path}: line {begins}: not valid CSV: {fault}", "correct this line")


# -- Parquet ----------------------------------------------------------------------------------------


def _parquet(path: Path, data: bytes, columns: Sequence[str]) -> Iterator[Numbered]:
    file = _opened(path, data)
    schema = file.schema_arrow
    _verify_there(schema.names, columns, str(path))
    _verify_once(schema.names, columns, str(path), "column")
    names, before = _class_names(schema.metadata or {}), 0
    for part in _slices(path, file, columns):
        values = [
            _named(_python(path, part.column(name), before), names.get(name)) for name in columns
        ]
        yield from enumerate(zip(*values, strict=True), start=before + 1)
        before += part.num_rows


def _slices(path: Path, file: Any, columns: Sequence[str]) -> Iterator[Any]:
    """Record batches of these columns, short ones: Python's objects are many times Arrow's bytes."""
    import pyarrow as pa  # which is there now

    try:
        # No column of the file but those that are named. And without threads: one of Arrow's pool may be the
        # last to let go of `data` and ask for the GIL when the interpreter ends, which aborts the process.
        yield from file.iter_batches(SLICE, columns=list(columns), use_threads=False)
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise _damaged(path, error) from None


def _opened(path: Path, data: bytes) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise MachineError(
            f"{path}: Parquet is not read without the package `pyarrow`",
            "pip install pyarrow, or write the rows as JSONL or CSV",
        ) from None
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        _ = file.schema_arrow
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise _damaged(path, error) from None
    return file


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: not a readable Parquet file ({type(error).__name__})", "write the file again"
    )


def _python(path: Path, column: Any, before: int) -> list[object]:
    """The values of a slice that has ``before`` rows in front of it."""
    try:
        found: list[object] = column.to_pylist()
    except UnicodeDecodeError:
        for number, value in enumerate(column, start=before + 1):
            try:
                value.as_py()
            except UnicodeDecodeError:
                raise DataError(
                    f"{path}: row {number}: not valid UTF-8", "write the file as UTF-8"
                ) from None
        raise
    return found


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Columns that hold numbers and are read by the names that the library `datasets` has left for them."""
    try:
        features = parse_json(metadata[b"huggingface"])["info"]["features"]
        return {
            column: list(feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, AttributeError, OddError):
        return {}


def _named(values: list[object], names: list[str] | None) -> list[object]:
    if names is None:
        return values
    return [
        names[value] if type(value) is int and 0 <= value < len(names) else value
        for value in values
    ]


# -- what a row needs -------------------------------------------------------------------------------


def _verify_there(names: Sequence[str], columns: Sequence[str], place: str) -> None:
    for column in columns:
        if column in names:
            continue
        listed = ", ".join(shown(name) for name in names[:MOST_NAMED]) or "none"
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        near = nearest(column, names)
        hint = f"did you mean `{near}`? " if near else ""
        if len(names) == 1 and (odd := next((sign for sign in ";\t|" if sign in names[0]), "")):
            hint = f"separate fields by commas, not by {odd!r}. "
        raise DataError(
            f"{place}: the column `{shortened(column, 100)}` is missing",
            f"{hint}columns here: {listed}{more}; name one of them, or correct the file",
            public=f"the column `{column}` is missing",
        )


def _verify_once(names: Sequence[str], columns: Sequence[str], place: str, kind: str) -> None:
    for column in columns:
        if names.count(column) > 1:
            raise DataError(
                f"{place}: the {kind} `{shortened(column, 100)}` appears twice", "keep one of them"
            )


def type_name(value: object) -> str:
    """A value's type in a reader's words."""
    names = {
        bool: "boolean",
        int: "number",
        float: "number",
        list: "list",
        tuple: "list",
        dict: "JSON object",
        JsonObject: "JSON object",
        str: "string",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
