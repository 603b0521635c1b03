"""Local data: what is read, what is refused, and that messages name the line but not the text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from client.data import Rows, load_rows
from protocol.errors import DataError
from protocol.rows.formats import SLICE, read_values
from protocol.tasks.classification import Classification

TASK = Classification(labels=["01", "transfer", "card"], text="utterance", label="intent")
SECRET = "my private sentence"
GOOD = {"utterance": SECRET, "intent": "card"}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*rows: object) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def parquet(folder: Path, columns: dict[str, object], features: object = None) -> Path:
    from datasets import Dataset

    path = folder / "rows.parquet"
    Dataset.from_dict(columns, features=features).to_parquet(path)
    return path


def test_jsonl_csv_and_parquet_agree(tmp_path: Path) -> None:
    texts = ["pay, now", 'the "new" card', "zwei\nZeilen", "ü\u2028x"]
    labels = ["transfer", "card", "01", "card"]
    rows = [{"utterance": t, "intent": c, "id": 7} for t, c in zip(texts, labels, strict=True)]
    quoted = ["id,utterance,intent"]
    quoted += [
        '7,"{}",{}'.format(t.replace('"', '""'), c) for t, c in zip(texts, labels, strict=True)
    ]
    paths = [
        write(tmp_path, "a.jsonl", lines(rows[0], "", *rows[1:], "")),
        write(tmp_path, "b.jsonl", b"\xef\xbb\xbf" + lines(*rows).replace("\n", "\r\n").encode()),
        write(tmp_path, "c.csv", "\r\n".join(quoted) + "\r\n"),
        parquet(tmp_path, {"utterance": texts, "intent": labels}),
    ]
    for path in paths:
        read = load_rows(path, TASK)
        assert read.texts == texts, path
        assert read.targets == [1, 2, 0, 2], path
        assert len(read) == 4
    where = {
        "a.jsonl": ["line 1", "line 3", "line 4", "line 5"],
        "b.jsonl": ["line 1", "line 2", "line 3", "line 4"],
        "c.csv": ["line 2", "line 3", "line 4", "line 6"],  # one has a line break in it
        "rows.parquet": ["row 1", "row 2", "row 3", "row 4"],
    }
    for path in paths:
        read = load_rows(path, TASK)
        assert [read.line(row) for row in range(4)] == where[path.name]
        assert read.place(3) == f"{path}: {where[path.name][3]}"
        taken = read.take([3, 1])
        assert taken.texts == [texts[3], texts[1]]
        assert [taken.line(row) for row in range(2)] == [where[path.name][3], where[path.name][1]]


def test_rows_of_no_file_are_numbered() -> None:
    rows = Rows(texts=["a", "b"], targets=[0, 1])
    assert (rows.place(1), rows.line(1), rows.take([1]).place(0)) == ("row 2", "row 2", "row 1")


def test_parquet_class_labels_are_read_by_their_names(tmp_path: Path) -> None:
    from datasets import ClassLabel, Features, Value

    features = Features({"utterance": Value("string"), "intent": ClassLabel(names=["card", "01"])})
    path = parquet(tmp_path, {"utterance": ["a", "b"], "intent": [0, 1]}, features)
    assert load_rows(path, TASK).targets == [2, 0]


BAD_LINES = {
    "not json": (lines(GOOD, "", '{"utterance": '), "line 3: not valid JSON"),
    "an array": (lines([1]), "line 1: a list, not a JSON object"),
    "too deep": (lines(GOOD, "[" * 100_000), "line 2: not valid JSON"),
    "huge number": (lines("1" * 5000), "line 1: a number, not a JSON object"),
    "twice": ('{"utterance": "a", "intent": "card", "intent": "01"}', "line 1: the key `intent`"),
    "no text column": (
        lines(GOOD, {"utterences": "a", "intent": "card"}),
        "line 2: the column `utt",
    ),
    "no label column": (lines({"utterance": SECRET}), "line 1: the column `intent` is missing"),
    "text is a number": (
        lines({**GOOD, "utterance": 5}),
        "line 1: column `utterance` holds a number",
    ),
    "text is null": (lines({**GOOD, "utterance": None}), "line 1: column `utterance` holds a null"),
    "empty text": (
        lines(GOOD, {**GOOD, "utterance": " \t"}),
        "line 2: column `utterance` is empty",
    ),
    "NUL": (lines({**GOOD, "utterance": SECRET + "\0"}), "line 1: column `utterance` holds a NUL"),
    "surrogate": (
        r'{"utterance": "\ud800", "intent": "card"}',
        "line 1: column `utterance` holds half",
    ),
    "label is a number": (lines({**GOOD, "intent": 1}), "line 1: column `intent` holds a number"),
    "label is true": (lines({**GOOD, "intent": True}), "line 1: column `intent` holds a boolean"),
    "unknown label": (lines(GOOD, {**GOOD, "intent": "cart"}), "line 2: the label 'cart' is not"),
    "label in capitals": (lines({**GOOD, "intent": "Card"}), "line 1: the label 'Card' is not"),
    "text as label": (
        lines({**GOOD, "intent": SECRET * 3}),
        "line 1: the label (of 57 characters)",
    ),
    "bad utf-8": (lines(GOOD).encode() + b"\n\xff\n", "line 2: not valid UTF-8"),
    "empty": ("", "there are no rows"),
    "blank lines": ("\n \n", "there are no rows"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_of_jsonl_is_named(tmp_path: Path, case: str) -> None:
    content, expected = BAD_LINES[case]
    path = write(tmp_path, "x.jsonl", content)
    with pytest.raises(DataError) as caught:
        load_rows(path, TASK)
    assert str(path) in caught.value.cause
    assert expected in caught.value.cause
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_CSV = {
    "header only": ("utterance,intent\n", "there are no rows"),
    "empty": ("", "there are no rows"),
    "no header": (f"{SECRET},card\n", "line 1: the column `utterance` is missing"),
    "few fields": ("utterance,intent\na,card\nb\n", "line 3: 1 fields, the header has 2"),
    "many fields": ("utterance,intent\na,b,card\n", "line 2: 3 fields, the header has 2"),
    "two columns": (
        "utterance,intent,intent\na,card,01\n",
        "line 1: the column `intent` appears twice",
    ),
    "open quote": ('utterance,intent\n"a,card\n', "not valid CSV"),
    "label 1 is not 01": ("utterance,intent\na,01\nb,1\n", "line 3: the label '1' is not"),
    "after a long field": ('utterance,intent\n"a\nb",card\nc,?\n', "line 4: the label '?' is not"),
    "empty text": ("utterance,intent\n,card\n", "line 2: column `utterance` is empty"),
    "bad utf-8": (b"utterance,intent\na,card\n\xff,card\n", "line 3: not valid UTF-8"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_a_bad_line_of_csv_is_named(tmp_path: Path, case: str) -> None:
    content, expected = BAD_CSV[case]
    with pytest.raises(DataError) as caught:
        load_rows(write(tmp_path, "x.csv", content), TASK)
    assert expected in caught.value.cause


BAD_PARQUET = {
    "no column": ({"text": ["a"], "intent": ["card"]}, "the column `utterance` is missing"),
    "number as text": (
        {"utterance": [1], "intent": ["card"]},
        "row 1: column `utterance` holds a num",
    ),
    "null": (
        {"utterance": ["a", None], "intent": ["card"] * 2},
        "row 2: column `utterance` holds a null",
    ),
    "label is int": ({"utterance": ["a"], "intent": [1]}, "row 1: column `intent` holds a number"),
    "unknown": ({"utterance": ["a", "b"], "intent": ["card", "x"]}, "row 2: the label 'x' is not"),
    "empty": ({"utterance": [], "intent": []}, "there are no rows"),
}


@pytest.mark.parametrize("case", BAD_PARQUET)
def test_a_bad_row_of_parquet_is_named(tmp_path: Path, case: str) -> None:
    columns, expected = BAD_PARQUET[case]
    with pytest.raises(DataError) as caught:
        load_rows(parquet(tmp_path, columns), TASK)
    assert expected in caught.value.cause


def test_parquet_with_bytes_that_are_no_utf8_names_the_row(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffers = [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
    texts = pa.Array.from_buffers(pa.string(), 2, buffers)
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"utterance": texts, "intent": ["card", "card"]}), path)
    with pytest.raises(DataError, match="row 2: not valid UTF-8"):
        load_rows(path, TASK)


def test_rows_of_parquet_become_python_objects_some_at_a_time(tmp_path: Path) -> None:
    """And the place of a row is counted over the whole file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, path = 20 * SLICE, tmp_path / "pages.parquet"
    boxes = [[[row % 1000 + n for n in range(4)]] * 9 for row in range(rows)]
    texts = pa.array(["a"] * (rows - 1) + [b"\xff"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), rows, texts.buffers())
    pq.write_table(pa.table({"boxes": boxes, "text": texts}), path)
    places = [place.number for place, _ in read_values(path, ["boxes"])]
    assert places == list(range(1, rows + 1))
    tracemalloc.start()
    assert sum(1 for _ in read_values(path, ["boxes"])) == rows
    most = tracemalloc.get_traced_memory()[1]
    kept = [values for _, values in read_values(path, ["boxes"])]
    whole = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert [value for (value,) in kept] == boxes
    assert most < whole / 4
    with pytest.raises(DataError, match=f"row {rows}: not valid UTF-8"):
        list(read_values(path, ["text"]))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.txt", "a", "files of type .txt are not read"),
        ("x", "a", "files of type (none) are not read"),
        ("x.parquet", "PAR1 but not really", "not a readable Parquet file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: str, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        load_rows(write(tmp_path, name, content), TASK)
    assert expected in caught.value.cause


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name in ("gone.jsonl", "folder.csv"):
        with pytest.raises(DataError, match="there is no such file"):
            load_rows(tmp_path / name, TASK)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (lines({**GOOD, "intent": "cart"}), "did you mean 'card'?"),
        (lines({"uterance": "a", "intent": "card"}), "did you mean `uterance`?"),
    ],
)
def test_the_remedy_names_the_nearest(tmp_path: Path, content: str, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        load_rows(write(tmp_path, "x.jsonl", content), TASK)
    assert hint in caught.value.remedy


def test_no_copy_of_private_rows_is_left(tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    data = tmp_path / "data"
    data.mkdir()
    names = [
        write(data, "a.jsonl", lines(GOOD)),
        write(data, "b.csv", f"utterance,intent\n{SECRET},card\n"),
        parquet(data, {"utterance": [SECRET], "intent": ["card"]}),
    ]
    script = (
        "import sys; from pathlib import Path; from client.data import load_rows;"
        "from protocol.tasks.classification import Classification\n"
        "task = Classification(labels=['01', 'card'], text='utterance', label='intent')\n"
        "for name in sys.argv[1:]: assert len(load_rows(Path(name), task)) == 1\n"
        "print('all were read', flush=True)\n"
    )
    environment = os.environ | {
        "HOME": str(home), "HF_HOME": str(home / "hf"), "TMPDIR": str(temporary),
        "XDG_CACHE_HOME": str(home / "cache"), "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, names)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=temporary,
    )
    assert done.returncode == 0
    assert done.stdout.endswith("all were read\n")
    left = [path for root in (home, temporary) for path in root.rglob("*") if path.is_file()]
    assert [path for path in left if SECRET.encode() in path.read_bytes()] == []
    assert [path for path in left if path.suffix in {".arrow", ".parquet"}] == []


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_parquet_is_read_without_threads_that_outlive_it(tmp_path: Path) -> None:
    """One of Arrow's that lets go of Python's bytes while the interpreter ends aborts the process."""
    script = (
        "import os, sys; from pathlib import Path; import pyarrow.parquet\n"
        "from protocol.rows.read import one_of, read_rows\n"
        "before = set(os.listdir('/proc/self/task'))\n"
        "read_rows(Path(sys.argv[1]), text='utterance', target='intent', check=one_of(['card']))\n"
        "print(len(set(os.listdir('/proc/self/task')) - before))\n"
    )
    name = parquet(tmp_path, {"utterance": ["a"], "intent": ["card"]})
    child = subprocess.run(
        [sys.executable, "-c", script, str(name)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdout == "0\n"
