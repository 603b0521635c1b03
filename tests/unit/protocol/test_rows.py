"""What a refusal tells people to do: labels that look like another, quotes, columns, plain lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import DataError
from protocol.rows.formats import read_columns
from protocol.rows.labels import hint, look, verify_distinct
from protocol.rows.read import any_label, read_rows, read_texts

KNOWN = ["card", "caf\u00e9", "A b", "transfer"]


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("Card", ["'card'", "differs only by case"]),
        ("card ", ["'card'", "differs only by blanks"]),
        ("A  b", ["'A b'", "blanks"]),
        ("A\u00a0b", ["'A b'", "blanks"]),
        ("cafe\u0301", ["caf\u00e9", "'caf\\xe9'", "the Unicode form of a letter"]),
        ("card\u200b", ["'card'", "forms of letters"]),
        ("\uff43\uff41\uff52\uff44", ["'card'", "forms of letters"]),
        ("c\u0430rd", ["did you mean 'card'?"]),
        ("cart", ["did you mean 'card'?"]),
        ("zzzz", ["use a label of the plan's task.labels"]),
    ],
)
def test_the_remedy_says_in_what_a_label_differs(label: str, says: list[str]) -> None:
    for part in says:
        assert part in hint(label, KNOWN)


def test_labels_that_are_two_are_two() -> None:
    distinct = ["a b", "a c", "1", "01", "caf\u00e9", "cafe", "transfer", "transfers", "-", "+"]
    assert verify_distinct(distinct, "x") == sorted(distinct)
    assert len({look(label) for label in distinct}) == len(distinct)


def test_too_many_labels_are_a_wrong_column() -> None:
    with pytest.raises(DataError, match="5000 different labels") as caught:
        verify_distinct(map(str, range(5000)), "x")
    assert "plan.task.label" in caught.value.remedy


@pytest.mark.parametrize(
    ("label", "says"),
    [("x" * 201, "a label of 201 characters"), ("a\u0085b", "a control character"), ("", "empty")],
)
def test_a_label_that_no_plan_may_list_is_refused_where_it_stands(
    tmp_path: Path, label: str, says: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "t", "label": label}), "utf-8")
    with pytest.raises(DataError, match=f"line 1: .*{says}"):
        read_rows(path, text="text", target="label", check=any_label)


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_another_separator_is_named(tmp_path: Path, sign: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"text{sign}label\na{sign}b\n", "utf-8")
    with pytest.raises(DataError) as caught:
        read_rows(path, text="text", target="label", check=any_label)
    assert f"commas, not by {sign!r}" in caught.value.remedy


def test_columns_of_each_format(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.csv").write_text("\ufeffb,a\n1,2\n", "utf-8")
    (tmp_path / "a.jsonl").write_text('{"b": 1}\n{"a": 2, "b": 3}\n', "utf-8")
    pq.write_table(pa.table({"b": [1], "a": [2]}), tmp_path / "a.parquet")
    for kind in ("csv", "jsonl", "parquet"):
        assert read_columns(tmp_path / f"a.{kind}") == ["b", "a"]


LINES = "one\u2028line\r\n\n \ntwo\x85\x0b\x0c\x1cstill\nthree"


def test_lines_end_where_those_of_rows_do(tmp_path: Path) -> None:
    wanted = ["one\u2028line", "two\x85\x0b\x0c\x1cstill", "three"]
    plain = tmp_path / "a.txt"
    plain.write_bytes(b"\xef\xbb\xbf" + LINES.encode())
    assert read_texts(plain, "text") == wanted
    rows = tmp_path / "a.jsonl"
    rows.write_text(
        "".join(json.dumps({"q": t}, ensure_ascii=False) + "\n" for t in wanted), "utf-8"
    )
    assert read_texts(rows, "q") == wanted
    plain.write_bytes(b"a\nb\0\n")
    with pytest.raises(DataError, match="line 2: holds a NUL"):
        read_texts(plain, "text")


def test_parquet_without_its_package_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    code = (
        "import sys\nsys.modules['pyarrow'] = None\nfrom pathlib import Path\n"
        "from protocol.rows.read import read_texts\nfrom protocol.errors import MachineError\n"
        "try:\n    read_texts(Path(sys.argv[1]), 'text')\n"
        "except MachineError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.parquet")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert "without the package `pyarrow`" in done.stdout
