"""Raw rows: formats, and faults named by file and line."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from protocol.errors import DataError
from simulations.rows import read_rows

ROWS = [
    {"text": "a, b", "label": "x", "room": "hall"},
    {"text": "ü\n2", "label": "y", "room": "loft"},
]


def written(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    elif kind == "csv":
        path.write_text('text,label,room\n"a, b",x,hall\n"ü\n2",y,loft\n')
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_every_column_of_every_format(tmp_path: Path, kind: str) -> None:
    assert read_rows(written(tmp_path, kind), columns=["text", "label", "room"]) == ROWS


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", '{"text": "a", "label": "b"}\n[1]\n', "line 2: not a JSON object"),
        ("a.jsonl", '{"text": "a", "label": "b"}\n{"text"\n', "line 2: not a JSON object"),
        (
            "a.jsonl",
            '{"text": "a", "label": "b"}\n{"text": "secret"}\n',
            "line 2: the column `label`",
        ),
        ("a.jsonl", '{"text": "secret", "label": " "}', "line 1: column `label`"),
        (
            "a.jsonl",
            '{"text": "secret", "label": 3}\n',
            "line 1: column `label` holds no usable text",
        ),
        ("a.csv", "text,label\nsecret,\n", "line 2: column `label`"),
        ("a.csv", 'text,label\n"open\n', "not UTF-8 CSV"),
        ("a.jsonl", "\n", "no rows"),
        ("a.parquet", "this is no parquet", "not a readable Parquet file"),
        ("a.txt", "secret", "files of type .txt"),
    ],
)
def test_faults_are_named_without_content(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=says) as caught:
        read_rows(path, columns=["text", "label"])
    assert name in caught.value.cause
    assert "secret" not in str(caught.value)
