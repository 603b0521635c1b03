"""Raw rows of a data file, with every column, for splitting a data set over simulated devices.

The strict reading that training relies on is ``client.data``; here a row only needs the columns
the partition and the plan name.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client.data import is_usable
from protocol.errors import DataError

Row = dict[str, Any]


def read_rows(path: Path, *, columns: list[str]) -> list[Row]:
    """Rows of a JSONL, CSV or Parquet file.

    Raises:
        DataError: another format, a damaged line, a column without text, no rows; named by
            file and line (row for Parquet), never by content.
    """
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix)
    if reader is None:
        raise DataError(
            f"{path}: files of type {path.suffix or '(none)'} are not read",
            "use .jsonl, .csv or .parquet",
        )
    rows = []
    for where, row in reader(path):
        for column in columns:
            value = row.get(column)
            if column not in row:
                raise DataError(
                    f"{path}: {where}: the column `{column}` is missing",
                    "mend the file or the plan",
                )
            if not is_usable(value):
                raise DataError(
                    f"{path}: {where}: column `{column}` holds no usable text",
                    "mend this row or the plan",
                )
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: no rows", "name a file with data")
    return rows


def _jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise DataError(f"{path}: line {number}: not a JSON object", "mend this line")
            yield f"line {number}", row


def _csv(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                yield f"line {reader.line_num}", row
        except (csv.Error, UnicodeDecodeError):
            raise DataError(
                f"{path}: after line {reader.line_num}: not UTF-8 CSV", "mend this line"
            ) from None


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError):
        raise DataError(f"{path}: not a readable Parquet file", "fetch the file again") from None
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"row {number}", row
