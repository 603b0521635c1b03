"""Local data: a file of rows to texts and label indices, or an error that names the line.

A strict reader of our own finds every fault with its line; what passed becomes an in-memory
``datasets.Dataset`` whose ``ClassLabel`` feature turns names into indices. Parquet files keep the
features ``datasets`` wrote into them, so a ClassLabel column is read by its names. Nothing is
memory-mapped, fingerprinted to disk or cached: no copy of private rows is left anywhere. Types are
never guessed: a CSV label ``01`` stays the text ``01``. Messages show column names and (short)
labels, never a row's text.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from protocol.errors import DataError
from protocol.misspelling import nearest
from protocol.plan import Task

LONGEST_LABEL_SHOWN = 40  # characters; a longer "label" may be a text in the wrong column


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A client's data: ``labels[i]`` is the index in ``task.labels`` of ``texts[i]``'s label."""

    texts: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where a value stands: ``unit`` is "line" or "row", counted from 1."""

    path: Path
    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.path}: {self.unit} {self.number}"


_Pair = tuple[int, object, object]  # line or row, text, label


def load_rows(path: Path, task: Task) -> Rows:
    """Read a ``.jsonl``, ``.csv`` or ``.parquet`` file by the plan's columns.

    Raises DataError for the first row that does not fit; then nothing is returned.
    """
    return _through_datasets(*read_columns(path, task), task)


def read_columns(path: Path, task: Task) -> tuple[list[str], list[str]]:
    """Texts and labels of the file, checked row by row. Raises DataError as :func:`load_rows` does."""
    reader, unit = _reader(path)
    known = frozenset(task.labels)
    texts: list[str] = []
    labels: list[str] = []
    try:
        for number, text, label in reader(path, task):
            if not is_usable(text):
                raise _bad_text(text, _Place(path=path, unit=unit, number=number), task)
            if type(label) is not str or label not in known:
                raise _bad_label(label, _Place(path=path, unit=unit, number=number), task)
            texts.append(text)
            labels.append(label)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror or type(error).__name__}",
            "check the path and its permissions",
        ) from None
    if not texts:
        raise DataError(
            f"{path}: there are no rows", "give this client a file with data", public="no rows"
        )
    return texts, labels


def _through_datasets(texts: list[str], labels: list[str], task: Task) -> Rows:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=task.labels)})
    dataset = Dataset.from_dict({"text": texts, "label": labels}, features=features)
    table = dataset.data  # the Arrow table: faster than rows one by one
    return Rows(texts=table.column("text").to_pylist(), labels=table.column("label").to_pylist())


def _reader(path: Path) -> tuple[Callable[[Path, Task], Iterator[_Pair]], str]:
    suffix = path.suffix.lower()
    readers: dict[str, tuple[Callable[[Path, Task], Iterator[_Pair]], str]] = {
        ".jsonl": (_jsonl, "line"),
        ".csv": (_csv, "line"),
        ".parquet": (_parquet, "row"),
    }
    if suffix not in readers:
        raise DataError(
            f"{path}: files of type {suffix or '(none)'} are not read",
            "use .jsonl, .csv or .parquet",
        )
    if not path.is_file():
        raise DataError(f"{path}: there is no such file", "check the path")
    return readers[suffix]


def _decoded(path: Path) -> str:
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # a byte-order mark is no data
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line}: not valid UTF-8", "save the file as UTF-8") from None


def _jsonl(path: Path, task: Task) -> Iterator[_Pair]:
    # Only \n ends a line: str.splitlines would also cut at U+2028 inside a JSON string.
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line or line.isspace():
            continue
        place = _Place(path=path, unit="line", number=number)
        try:
            row = json.loads(line, object_pairs_hook=_distinct)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{place}: not valid JSON: {error.msg} at column {error.colno}",
                "write one JSON object per line",
            ) from None
        except KeyError as error:
            raise DataError(
                f"{place}: the key {_shown(str(error.args[0]))} appears twice", "keep one of them"
            ) from None
        except (ValueError, RecursionError):
            raise DataError(
                f"{place}: not valid JSON: nested too deep or a number too long",
                "write one flat JSON object per line",
            ) from None
        if type(row) is not dict:
            raise DataError(
                f"{place}: a {_type_name(row)}, not a JSON object",
                f'write {{"{task.text}": …, "{task.label}": …}}',
            )
        _need_columns(row, place, task)
        yield number, row[task.text], row[task.label]


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        raise KeyError(next(name for name in names if names.count(name) > 1))
    return row


def _csv(path: Path, task: Task) -> Iterator[_Pair]:
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), strict=True)
    header: list[str] = []
    line = 1
    try:
        for fields in reader:
            place = _Place(path=path, unit="line", number=line)
            line = reader.line_num + 1  # a quoted field may run over several lines
            if not fields:
                continue
            if not header:
                header = fields
                text_at, label_at = _header_places(header, place, task)
            elif len(fields) != len(header):
                raise DataError(
                    f"{place}: {len(fields)} fields, the header has {len(header)}",
                    "quote fields that hold commas",
                )
            else:
                yield place.number, fields[text_at], fields[label_at]
    except csv.Error as error:
        raise DataError(
            f"{path}: line {line}: not valid CSV: {error}", "correct this line"
        ) from None


def _header_places(header: list[str], place: _Place, task: Task) -> tuple[int, int]:
    _need_columns(header, place, task)
    for column in (task.text, task.label):
        if header.count(column) > 1:
            raise DataError(f"{place}: the column `{column}` appears twice", "keep one of them")
    return header.index(task.text), header.index(task.label)


def _parquet(path: Path, task: Task) -> Iterator[_Pair]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features

    try:
        # No memory map and no column of the file but the two that the plan names.
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            _need_columns(schema.names, _Place(path=path, unit="row", number=1), task)
            table = file.read(columns=[task.text, task.label])
            features = Features.from_arrow_schema(schema)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: not a readable Parquet file ({type(error).__name__})", "write the file again"
        ) from None
    feature = features.get(task.label)
    names = feature.names if isinstance(feature, ClassLabel) else None
    texts, labels = table.column(task.text), table.column(task.label)
    for index in range(table.num_rows):
        try:
            text, label = texts[index].as_py(), labels[index].as_py()
        except UnicodeDecodeError:
            raise DataError(
                f"{path}: row {index + 1}: not valid UTF-8", "write the file as UTF-8"
            ) from None
        if names is not None and type(label) is int and 0 <= label < len(names):
            label = names[label]
        yield index + 1, text, label


def _need_columns(columns: Sequence[str] | dict[str, Any], place: _Place, task: Task) -> None:
    for column in (task.text, task.label):
        if column not in columns:
            near = nearest(column, columns)
            listed = ", ".join(_shown(name) for name in list(columns)[:8]) or "none"
            hint = f"did you mean `{near}`?" if near else f"columns here: {listed};"
            raise DataError(
                f"{place}: the column `{column}` is missing",
                f"{hint} name it in the plan's [task], or correct the file",
                public=f"the column `{column}` is missing",
            )


def _bad_text(text: object, place: _Place, task: Task) -> DataError:
    if type(text) is not str:
        return DataError(
            f"{place}: column `{task.text}` holds a {_type_name(text)}, not text", "write a string"
        )
    if not text.strip():
        return DataError(f"{place}: column `{task.text}` is empty", "fill it in or remove the row")
    what = "a NUL character" if "\0" in text else "half of a surrogate pair"
    return DataError(f"{place}: column `{task.text}` holds {what}", "remove it")


def _bad_label(label: object, place: _Place, task: Task) -> DataError:
    if type(label) is not str:
        return DataError(
            f"{place}: column `{task.label}` holds a {_type_name(label)}, not text",
            "write the label as a string, as in the plan's task.labels",
        )
    near = nearest(label, task.labels)
    hint = f"did you mean {near!r}?" if near else "use a label of the plan's task.labels"
    return DataError(
        f"{place}: the label {_shown(label)} is not in the plan",
        hint,
        public=f"{place.unit} {place.number}: a label that is not in the plan",
    )


def is_usable(text: object) -> TypeGuard[str]:
    """Whether a value is a text to train on: a string with something in it, without NUL, encodable."""
    return type(text) is str and bool(text.strip()) and "\0" not in text and _encodes(text)


def _encodes(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: str) -> str:
    if len(value) > LONGEST_LABEL_SHOWN:
        return f"(of {len(value)} characters)"
    return repr(value)


def _type_name(value: object) -> str:
    names = {
        bool: "boolean",
        int: "number",
        float: "number",
        list: "list",
        dict: "JSON object",
        str: "string",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
