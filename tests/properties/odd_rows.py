"""Odd files of rows with what every reader has to say of them: the rows, or the beginning of a refusal.

Each file is made by a fault or an oddity, one at a time or in pairs, in each form that can have it; the
verdict follows from how the file is made, not from a reader.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

LABELS = ["ja", "nein", "01", "caf\u00e9", "A b"]
Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class OddFile:
    """``rows`` are what must be read; without them ``fault`` is part of the refusal's cause."""

    name: str  # with the ending
    data: bytes
    rows: list[Pair] | None = None
    fault: str = ""


TEXTS = {
    "plain": "turn on the light",
    "comma": "one, two",
    "quotes": 'the "new" one',
    "line": "two\nlines",
    "return": "two\r\nlines",
    "separator": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg",
    "long": "word " * 50_000,
    "blanks": "  kept as it is\t",
    "number": "007",
    "null": "null",
    "true": "true",
    "letters": "\u00fcber \u4f60\u597d \U0001f600 e\u0301",
    "mark inside": "a\ufeffb",
    "right to left": "\u202eabc",
    "semicolon": "a;b\tc",
    "escape": "back\\slash \\n",
    "json": '{"text": "x"}',
    "control": "bell\x07",
}
BAD_TEXTS: dict[str, tuple[object, str]] = {
    "empty": ("", "column `text` is empty"),
    "blank": (" \t\u00a0", "column `text` is empty"),
    "nul": ("a\0b", "column `text` holds a NUL"),
}
BAD_LABELS: dict[str, str] = {
    "unknown": "perhaps",
    "case": "Ja",
    "blank after": "ja ",
    "no zero": "1",
    "other form": "cafe\u0301",
    "nothing": "",
    "long": "x" * 300,
    "nbsp": "A\u00a0b",
    "zero width": "ja\u200b",
}
ROWS: list[Pair] = [("first", "ja"), ("second", "nein"), ("third", "01"), ("fourth", "caf\u00e9")]


def odd_files() -> list[OddFile]:
    """All of them, by different names."""
    found = [*_jsonl(), *_csv(), *_parquet(), *_others()]
    return [
        OddFile(
            name=f"{number:03d}-{one.name.replace(' ', '-')}",
            data=one.data,
            rows=one.rows,
            fault=one.fault,
        )
        for number, one in enumerate(found)
    ]


# -- JSONL --------------------------------------------------------------------------------------------

BESIDE_JSON = {
    "number": "7",
    "real": "1.5e3",
    "NaN": "NaN",
    "huge": "9" * 5000,
    "null": "null",
    "list": '["a", {"text": 1}]',
    "object": '{"a": {"a": 1, "a": 2}}',
    "half": r'"\ud800"',
    "empty": '""',
}


def line(text: object, label: object, beside: str = "") -> str:
    fields = json.dumps({"text": text, "label": label}, ensure_ascii=False)
    return f'{{"id": {beside}, {fields[1:]}' if beside else fields


def _good_jsonl(rows: list[Pair], beside: str = "") -> str:
    return "".join(line(*row, beside) + "\n" for row in rows)


def _jsonl() -> Iterator[OddFile]:
    def good(name: str, data: str | bytes, rows: list[Pair] = ROWS) -> OddFile:
        raw = data if isinstance(data, bytes) else data.encode()
        return OddFile(name=f"{name}.jsonl", data=raw, rows=rows)

    def bad(name: str, data: str | bytes, fault: str) -> OddFile:
        raw = data if isinstance(data, bytes) else data.encode()
        return OddFile(name=f"{name}.jsonl", data=raw, fault=fault)

    text = _good_jsonl(ROWS)
    wraps = {
        "plain": text.encode(),
        "mark": b"\xef\xbb\xbf" + text.encode(),
        "crlf": text.replace("\n", "\r\n").encode(),
        "blank lines": ("\n \n" + text.replace("\n", "\n\t\r\n")).encode(),
        "no end": text.rstrip().encode(),
        "escaped": "".join(json.dumps({"label": b, "text": a}) + "\n" for a, b in ROWS).encode(),
    }
    yield from (good(name, data) for name, data in wraps.items())
    for name, one in TEXTS.items():
        rows = [*ROWS, (one, "A b")]
        yield good(f"text {name}", _good_jsonl(rows), rows)
    for name, beside in BESIDE_JSON.items():
        yield good(f"beside {name}", _good_jsonl(ROWS, beside))
    yield good("beside twice", text.replace('{"text"', '{"id": 1, "id": 2, "text"'))
    yield OddFile(name="capital.JSONL", data=text.encode(), rows=ROWS)
    for (name, (value, fault)), at in itertools.product(BAD_TEXTS.items(), (0, 4)):
        lines = text.splitlines(keepends=True)
        lines.insert(at, line(value, "ja") + "\n")
        yield bad(f"text {name} {at}", "".join(lines), f"line {at + 1}: {fault}")
    for name, label in BAD_LABELS.items():
        yield bad(f"label {name}", text + line("a", label), "line 5: the label ")
    for value, kind in ((5, "number"), (1.5, "number"), (True, "boolean"), (None, "null")):
        yield bad(f"text is {value}", text + line(value, "ja"), f"column `text` holds a {kind}")
        yield bad(f"label is {value}", text + line("a", value), f"column `label` holds a {kind}")
    for value, kind in (([1], "list"), ({"a": 1}, "JSON object")):
        yield bad(f"text is a {kind}", text + line(value, "ja"), f"holds a {kind}")
        yield bad(f"label is a {kind}", text + line("a", value), f"holds a {kind}")
    damaged = {
        "cut": ('{"text": "a", "label"', "not valid JSON"),
        "array": ("[1]", "a list, not a JSON object"),
        "string": ('"text"', "a string, not a JSON object"),
        "two": (line("a", "ja") + line("b", "ja"), "not valid JSON"),
        "single quotes": ("{'text': 'a', 'label': 'ja'}", "not valid JSON"),
        "text twice": ('{"text": "a", "text": "b", "label": "ja"}', "the key `text` appears twice"),
        "label twice": ('{"text": "a", "label": "b", "label": "ja"}', "the key `label` appears"),
        "no text": ('{"label": "ja", "Text": "a"}', "the column `text` is missing"),
        "no label": ('{"text": "a", "lable": "ja"}', "the column `label` is missing"),
        "half": (
            r'{"text": "\ud800", "label": "ja"}',
            "column `text` holds half of a surrogate pair",
        ),
        "deep": ("[" * 50_000, "not valid JSON"),
        "mark": ("\ufeff" + line("a", "ja"), "a byte-order mark in the middle"),
    }
    for name, (odd, fault) in damaged.items():
        yield bad(f"line {name}", text + odd + "\n" + line("z", "ja"), f"line 5: {fault}")
    yield bad(
        "latin", text.encode() + b'{"text": "\xfc", "label": "ja"}', "line 5: not valid UTF-8"
    )
    yield bad("utf16", text.encode("utf-16"), "not valid UTF-8")
    yield bad("nothing", "", "there are no rows")
    yield bad("blank", "\n \r\n", "there are no rows")


# -- CSV ----------------------------------------------------------------------------------------------


def _written(rows: list[list[str]], **form: Any) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, **{"lineterminator": "\n", **form}).writerows(rows)
    return out.getvalue()


def _csv() -> Iterator[OddFile]:
    table = [["text", "label"], *map(list, ROWS)]
    text = _written(table)

    def good(name: str, data: str | bytes, rows: list[Pair] = ROWS) -> OddFile:
        raw = data if isinstance(data, bytes) else data.encode()
        return OddFile(name=f"{name}.csv", data=raw, rows=rows)

    def bad(name: str, data: str | bytes, fault: str) -> OddFile:
        raw = data if isinstance(data, bytes) else data.encode()
        return OddFile(name=f"{name}.csv", data=raw, fault=fault)

    yield good("plain", text)
    yield good("mark", b"\xef\xbb\xbf" + text.encode())
    yield good("crlf", _written(table, lineterminator="\r\n"))
    yield good("cr", _written(table, lineterminator="\r"))
    yield good("quoted", _written(table, quoting=csv.QUOTE_ALL))
    yield good("blank lines", "\n" + text.replace("\n", "\n\n"))
    yield good("no end", text.rstrip())
    yield good("turned", _written([row[::-1] for row in table]))
    yield good("quote inside", text + '5" disk,ja\n', [*ROWS, ('5" disk', "ja")])
    for name, one in TEXTS.items():
        rows = [*ROWS, (one, "A b"), ("last", "ja")]
        yield good(f"text {name}", _written([["text", "label"], *map(list, rows)]), rows)
    for name, beside in {"empty": "", "number": "1", "lines": "a\nb", "quotes": '"'}.items():
        yield good(f"beside {name}", _written([["id", *table[0]], *([beside, *r] for r in ROWS)]))
    yield good("beside twice", _written([["id", "id", *table[0]], *(["", "", *r] for r in ROWS)]))
    yield good("beside unnamed", _written([["", *table[0]], *(["1", *row] for row in ROWS)]))
    for (name, (value, fault)), at in itertools.product(BAD_TEXTS.items(), (1, 5)):
        rows = [*table[:at], [str(value), "ja"], *table[at:]]
        yield bad(f"text {name} {at}", _written(rows), f"line {at + 1}: {fault}")
    for name, label in BAD_LABELS.items():
        yield bad(f"label {name}", text + _written([["a", label]]), "line 6: the label ")
    after = text + '"two\nlines",ja\n'
    damaged = {
        "few": ("a\n", "1 fields, the header has 2"),
        "many": ("one, two,ja\n", "3 fields, the header has 2"),
        "open": ('"a,ja\nb,ja\n', "not valid CSV: a quote opens in this row and is never closed"),
        "stray": ('"a" b,ja\n', "not valid CSV: a quote opens in this row and closes here"),
        "stray later": (
            '"a,ja\nb "x" c,ja\n',
            "not valid CSV: a quote opens in this row and closes at line",
        ),
        "semicolon": ("a;ja\n", "1 fields, the header has 2"),
    }
    for (name, (odd, fault)), (lead, at) in itertools.product(
        damaged.items(), ((text, 6), (after, 8))
    ):
        yield bad(f"line {name} {at}", lead + odd, f"line {at}: {fault}")
    yield bad("shifted", "text,label,id\na,ja,1\none, two,ja,2\n", "line 3: 4 fields")
    headers = {
        "no header": ("a,ja\n", "line 1: the column `text` is missing"),
        "semicolons": ("text;label\na;ja\n", "line 1: the column `text` is missing"),
        "tabs": ("text\tlabel\na\tja\n", "line 1: the column `text` is missing"),
        "capitals": ("Text,Label\na,ja\n", "line 1: the column `text` is missing"),
        "blank": ("text, label\na,ja\n", "line 1: the column `label` is missing"),
        "text twice": ("text,label,text\na,ja,b\n", "line 1: the column `text` appears twice"),
        "label twice": ("text,label,label\na,ja,ja\n", "line 1: the column `label` appears"),
        "alone": ("text,label\n", "there are no rows"),
        "nothing": ("", "there are no rows"),
    }
    yield from (bad(name, data, fault) for name, (data, fault) in headers.items())
    yield bad("latin", text.encode() + b"\xfc,ja\n", "line 6: not valid UTF-8")
    yield bad("utf16", text.encode("utf-16"), "not valid UTF-8")


# -- Parquet ------------------------------------------------------------------------------------------


def parquet(columns: dict[str, Any], **form: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, out, **form)
    return out.getvalue()


def _class_label(names: list[str], values: list[int | None], texts: list[str]) -> bytes:
    import pyarrow as pa

    feature = {"names": names, "_type": "ClassLabel"}
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": feature}
    table = pa.table({"text": texts, "label": pa.array(values, pa.int64())})
    info = json.dumps({"info": {"features": features}}).encode()
    return parquet(table.replace_schema_metadata({b"huggingface": info}))


def _parquet() -> Iterator[OddFile]:
    import pyarrow as pa

    texts, labels = [text for text, _ in ROWS], [label for _, label in ROWS]
    base = {"text": texts, "label": labels}

    def good(name: str, data: bytes, rows: list[Pair] = ROWS) -> OddFile:
        return OddFile(name=f"{name}.parquet", data=data, rows=rows)

    def bad(name: str, data: bytes, fault: str) -> OddFile:
        return OddFile(name=f"{name}.parquet", data=data, fault=fault)

    for name, kind in {
        "string": pa.string(),
        "large": pa.large_string(),
        "view": pa.string_view(),
        "categories": pa.dictionary(pa.int8(), pa.string()),
    }.items():
        yield good(f"as {name}", parquet({k: pa.array(v, kind) for k, v in base.items()}))
    yield good("row groups", parquet(base, row_group_size=1))
    yield good("gzip", parquet(base, compression="gzip"))
    yield good("zstd", parquet(base, compression="zstd"))
    yield good("old", parquet(base, version="1.0"))
    when = dt.datetime(2020, 1, 2, 3, 4)
    beside = {
        "int": pa.array([1, None, 3, 4]),
        "date": pa.array([when.date()] * 4),
        "moment": pa.array([when] * 4, pa.timestamp("ns", "UTC")),
        "time": pa.array([when.time()] * 4),
        "duration": pa.array([dt.timedelta(1)] * 4),
        "decimal": pa.array([Decimal("1.5")] * 4),
        "list": pa.array([[1], [], None, [2]]),
        "struct": pa.array([{"a": 1, "text": "x"}] * 4),
        "map": pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int64())),
        "bytes": pa.array([b"\xff"] * 4),
        "fixed": pa.array([b"\xff\x00"] * 4, pa.binary(2)),
        "half float": pa.array([1.0] * 4, pa.float16()),
        "null": pa.nulls(4),
        "categories": pa.array(["x"] * 4).dictionary_encode(),
        "numbers": pa.array([5] * 4).dictionary_encode(),
        "bool": pa.array([True] * 4),
    }
    for name, column in beside.items():
        yield good(f"beside {name}", parquet({"id": column, **base}))
    yield good("beside text.raw", parquet({"text.raw": texts[::-1], **base}))
    yield good("class label", _class_label(LABELS, [0, 1, 2, 3], texts))
    yield good("class label turned", _class_label(LABELS[::-1], [4, 3, 2, 1], texts))
    for name, one in TEXTS.items():
        rows = [*ROWS, (one, "A b")]
        data = parquet({"text": [t for t, _ in rows], "label": [label for _, label in rows]})
        yield good(f"text {name}", data, rows)
    for name, (value, fault) in BAD_TEXTS.items():
        data = parquet({"text": [*texts, value], "label": [*labels, "ja"]})
        yield bad(f"text {name}", data, f"row 5: {fault}")
    for name, label in BAD_LABELS.items():
        data = parquet({"text": [*texts, "a"], "label": [*labels, label]})
        yield bad(f"label {name}", data, "row 5: the label ")
    yield bad(
        "null text", parquet({"text": ["a", None], "label": ["ja"] * 2}), "row 2: column `text`"
    )
    yield bad(
        "null label", parquet({"text": ["a", "b"], "label": ["ja", None]}), "row 2: column `label`"
    )
    yield bad(
        "numbers", parquet({"text": ["a"], "label": [1]}), "row 1: column `label` holds a num"
    )
    yield bad("no class", _class_label(LABELS, [0, -1], ["a", "b"]), "row 2: column `label` holds")
    yield bad("beyond", _class_label(LABELS, [0, 9], ["a", "b"]), "row 2: column `label` holds a")
    yield bad("other class", _class_label(["ja", "x"], [0, 1], ["a", "b"]), "row 2: the label 'x'")
    yield bad("bytes", parquet({"text": [b"a"], "label": ["ja"]}), "row 1: column `text` holds a")
    yield bad("list", parquet({"text": [["a"]], "label": ["ja"]}), "row 1: column `text` holds a")
    yield bad("no text", parquet({"txt": ["a"], "label": ["ja"]}), "the column `text` is missing")
    yield bad("no label", parquet({"text": ["a"]}), "the column `label` is missing")
    twice = pa.Table.from_arrays(
        [pa.array(["a"]), pa.array(["ja"]), pa.array(["b"])], [*base, "text"]
    )
    yield bad("twice", parquet(twice), "the column `text` appears twice")
    yield bad("empty", parquet({k: pa.array([], pa.string()) for k in base}), "there are no rows")
    buffers = [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
    odd = pa.Array.from_buffers(pa.string(), 2, buffers)
    yield bad("latin", parquet({"text": odd, "label": ["ja"] * 2}), "row 2: not valid UTF-8")
    whole = parquet(base)
    yield bad("cut", whole[:-20], "not a readable Parquet file")
    yield bad("no parquet", b"PAR1 but not really", "not a readable Parquet file")


def _others() -> Iterator[OddFile]:
    text = _good_jsonl(ROWS).encode()
    for name in ("rows.json", "rows.txt", "rows.tsv", "rows.csv.gz", "rows"):
        yield OddFile(name=name, data=text, fault="are not read")
